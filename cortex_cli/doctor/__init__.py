"""Checks of an installation and of the clients it serves."""
