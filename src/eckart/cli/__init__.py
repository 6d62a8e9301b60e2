"""The commands: each file parses, calls one library function and shows its result."""
