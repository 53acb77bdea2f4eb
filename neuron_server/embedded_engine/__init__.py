"""The engine that comes with the package."""
