"""Real components assembled for tests: scripted engines, gateways on free ports, raw clients."""
