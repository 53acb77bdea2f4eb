"""The command `cortex`: a client of gateways, and the entry point of both daemons."""
