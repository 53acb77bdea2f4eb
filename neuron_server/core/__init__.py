"""The decisions of a node as pure functions and state machines."""
