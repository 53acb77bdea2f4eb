"""The memory of devices and of the host: who uses how much, what is reserved, and what a load is granted."""
