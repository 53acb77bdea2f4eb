"""A whole fleet on one host, from nothing: tiny models, a neuron, a gateway, an answer."""
