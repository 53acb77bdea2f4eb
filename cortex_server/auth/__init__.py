"""API keys: authentication, scopes, limits, usage, and the queue that admits requests."""
