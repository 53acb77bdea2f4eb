"""Generated documentation of the command."""
