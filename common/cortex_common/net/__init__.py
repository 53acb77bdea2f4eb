"""Sockets, TLS, systemd and the state directory."""
