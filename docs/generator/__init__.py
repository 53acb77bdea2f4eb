"""Generates the pages of docs/reference from the code; not part of the distributed packages."""
