"""Execution of refits: in this process, or on the workers of a dask cluster."""
