"""Widgets that each draw one part of the view model."""
