"""Screens on top of the main one: confirmations, pages of text, logs."""
