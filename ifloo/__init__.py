"""Training-data attribution for PyTorch Lightning, proved by leave-one-out retraining."""

__version__ = "0.1.0"
