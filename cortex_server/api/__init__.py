"""Routers of the control side, thin."""
