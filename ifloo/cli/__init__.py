"""Floor 9: the command line; wiring only."""
