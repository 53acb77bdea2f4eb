"""Instances: their state machine, runners and registry."""
