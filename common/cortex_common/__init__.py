"""Types, settings and clients shared by the cortex command, the gateway and the neuron."""

__version__ = "0.1.0"
