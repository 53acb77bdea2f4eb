"""HTTP/1.1 for both daemons: server protocol, client, forwarding, SSE."""
