"""The commands, a noun a file."""
