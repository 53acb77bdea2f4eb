"""`cortex top`: pure view models, widgets that draw them, and an app that wires them. Only here is textual known."""
