"""The commands, one module per noun; each parses its options, calls the gateway and writes the result."""
