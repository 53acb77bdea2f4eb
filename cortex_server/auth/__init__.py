"""Who may do what, how much of it, and how much it was: keys, scopes, limits, usage."""
