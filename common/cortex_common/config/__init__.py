"""Configuration: TOML files and environment variables, validated, with the origin of each value."""
