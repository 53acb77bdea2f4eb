"""The command `cortex`: parse, call the gateway, render."""
