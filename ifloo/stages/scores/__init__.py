"""Scores through a Trainer: the influence stage, its predict module, and what is stored of each test."""
