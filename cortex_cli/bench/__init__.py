"""`cortex bench`: a gateway measured as its users feel it."""
