"""Engine processes: starting, watching, stopping and identifying them."""
