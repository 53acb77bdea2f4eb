"""`cortex demo`: a complete fleet on one host, from tiny models to a response."""
