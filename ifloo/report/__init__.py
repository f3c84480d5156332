"""Pictures and tables of influence scores and of their comparison with refits."""
