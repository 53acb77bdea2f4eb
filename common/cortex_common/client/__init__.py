"""HTTP clients of the gateway's and the neuron's APIs."""
