"""Error of a strategy whose refits would not end where refits one by one do."""

from ifloo.errors import InputError


class StrategyError(InputError):
    """A refit strategy does not suit this model, its training or its data; the text gives the reason as one clause."""
