"""Pure renderers: a model of the shared vocabulary in, text out."""
