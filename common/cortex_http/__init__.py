"""HTTP/1.1 core shared by both daemons: server protocol, client with a connection pool, forwarding and SSE.

It depends only on the standard library, uvicorn and httptools, and knows nothing about cortex: routes, error bodies and
limits are handed in.
"""
