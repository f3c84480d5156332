"""Scores of a fit in the user's own Trainer, as a callback."""
