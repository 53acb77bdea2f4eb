"""The gateway's SQLite database, and the stores for keys, placement state and history in it."""
