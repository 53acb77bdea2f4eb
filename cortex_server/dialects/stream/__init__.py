"""Reading, repairing, aggregating and writing of chat completion streams."""
