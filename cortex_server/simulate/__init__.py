"""Runs the real placement cores against a trace, at thousands of times real time, to judge a policy."""
