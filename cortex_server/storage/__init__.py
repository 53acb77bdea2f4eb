"""The gateway's SQLite database: keys, placement state and history."""
