"""What `crossband demo` serves."""
