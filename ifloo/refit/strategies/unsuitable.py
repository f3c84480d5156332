"""What a path says where it would not give what one by one gives."""

from ifloo.errors import InputError


class StrategyError(InputError):
    """A path of refits does not serve this model, recipe or data; the text is the reason, one clause."""
