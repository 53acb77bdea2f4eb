"""Reading, repairing and writing of chat completion streams."""
