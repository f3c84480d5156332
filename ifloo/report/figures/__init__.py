"""Figures of matplotlib: scores, verdicts, samples."""
