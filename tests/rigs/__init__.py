"""Real parts put together for tests: scripted engines, gateways on free ports, raw clients."""
