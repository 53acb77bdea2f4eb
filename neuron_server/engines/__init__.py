"""Engines that live in Python wheels, each a worker process behind an OpenAI HTTP face."""
