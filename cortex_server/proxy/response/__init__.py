"""Responses of engines on their way to the client."""
