"""HTTP clients of the gateway's operator API and of the neuron's API."""
