"""The one task that decides about loads and evictions, and what carries them out."""
