"""Modules of `scripts/benchmark.py`."""
