"""Generated documentation of the command: manual pages and reference pages."""
