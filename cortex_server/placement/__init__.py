"""Pure placement decisions: where a model fits, what to evict, which request waits."""
