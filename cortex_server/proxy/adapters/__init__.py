"""Adapters between the dialects of clients and the one of engines."""
