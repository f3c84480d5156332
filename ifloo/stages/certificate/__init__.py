"""The objective certificate of a run: the user's training step is replayed and held against J."""
