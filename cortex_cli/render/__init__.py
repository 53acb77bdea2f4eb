"""Pure renderers from models of the API to text."""
