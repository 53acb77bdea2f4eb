"""Weights of models: which files an engine loads, how large they are, and what memory they need."""
