"""Live state of the fleet: watchers in, immutable snapshots out."""
