"""Screens that lie over the main one: questions, descriptions, keys."""
