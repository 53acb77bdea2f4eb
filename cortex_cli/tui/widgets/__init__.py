"""Widgets: each draws one part of the view model and knows nothing of where it comes from."""
