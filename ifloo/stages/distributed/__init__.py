"""Processes that share one pass over the training data."""
