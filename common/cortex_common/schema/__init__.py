"""Wire types shared by the gateway, the neurons and the command."""
