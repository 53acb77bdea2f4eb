"""Whether a model, asked through a gateway, does what a kind of client needs."""
