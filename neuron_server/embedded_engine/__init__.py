"""The embedded engine: a worker process with the mistral.rs wheel."""
