"""Namespaces, rooms, dispatch and fan-out. Knows codecs and connections, no transport."""
