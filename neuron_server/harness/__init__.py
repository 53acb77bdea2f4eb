"""Harnesses: adapters for the supported kinds of engine."""
