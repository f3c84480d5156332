"""TensorBoard: one run folder for each experiment."""
