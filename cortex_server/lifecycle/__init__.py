"""Lifecycle of instances: the controller, which owns loads and evictions, and the operations that it carries out."""
