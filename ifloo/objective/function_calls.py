"""Calls of torch's functions that code makes, watched for one kind of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch.overrides import TorchFunctionMode


class WatchedCalls(TorchFunctionMode):
    """Context that notes whether code makes a call of one kind.

    Attributes:
        found: Whether it did.
    """

    def __init__(self, kind: Callable[[object, Sequence[object], Mapping[str, object]], bool]) -> None:
        """Stores the function of (function, arguments, arguments by name) that tells whether a call is of the kind."""
        super().__init__()
        self.kind = kind
        self.found: bool = False

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = kwargs or {}
        self.found = self.found or self.kind(func, args, named)
        return func(*args, **named)
