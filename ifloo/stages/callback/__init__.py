"""Callback that scores training samples during a fit in the user's own Trainer."""
