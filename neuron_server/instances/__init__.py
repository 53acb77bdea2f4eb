"""Instances: their state machine, registry, runners, loading and unloading."""
