"""Adapters for kinds of engines, and the supervisor of their processes."""
