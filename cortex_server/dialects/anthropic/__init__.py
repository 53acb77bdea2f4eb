"""Translation of the Anthropic Messages API."""
