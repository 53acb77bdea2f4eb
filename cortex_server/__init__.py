"""The gateway: one API in front of a fleet of neurons."""
