"""Benchmarks, which report times but do not check them."""
