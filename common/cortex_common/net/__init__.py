"""TLS, systemd integration and the state directory of the daemons."""
