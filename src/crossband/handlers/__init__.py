"""What applications write: handlers, which are typed and checked at registration."""
