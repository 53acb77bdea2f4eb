"""Instances: their state machine, registry and runners."""
