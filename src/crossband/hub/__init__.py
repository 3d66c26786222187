"""Namespaces, rooms, dispatch and fan-out. Knows codecs and connections, but no transports."""
