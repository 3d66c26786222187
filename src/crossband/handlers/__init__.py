"""What applications write: handlers, checked where they are registered, typed and run."""
