"""Checks of the fleet, the host, and of a model's support for clients."""
