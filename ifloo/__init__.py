"""Training-data attribution for PyTorch Lightning, verified by leave-one-out retraining."""

__version__ = "0.1.0"
