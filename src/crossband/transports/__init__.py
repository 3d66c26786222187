"""The doors: the I/O of one connection each, over ASGI."""
