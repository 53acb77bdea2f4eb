"""Configuration: TOML files and environment variables into validated settings, each with its origin."""
