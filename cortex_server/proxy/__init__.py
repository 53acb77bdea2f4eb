"""The hot path of a request."""
