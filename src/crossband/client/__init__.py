"""A Python client of any door: follows what a server sends, across reconnects."""
