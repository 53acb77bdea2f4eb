"""Runs the real placement cores against a trace, at thousands of times real time, to compare_policies a policy."""
