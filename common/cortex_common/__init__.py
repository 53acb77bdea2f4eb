"""The vocabulary that cortex's command, gateway and neuron share."""

__version__ = "0.1.0"
