"""Placement decisions: where a model fits, what to evict, and which request waits. Pure: no I/O, no clock, no log."""
