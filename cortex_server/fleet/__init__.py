"""Live state of the fleet: watchers report what nodes say, readers get immutable snapshots."""
