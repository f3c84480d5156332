"""How refits are executed: in this process, or on workers of a dask cluster."""
