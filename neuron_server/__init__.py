"""The node daemon: finds the hardware and runs the engines."""
