"""Scores through a Trainer: the influence stage, its predict module, and the records of each test."""
