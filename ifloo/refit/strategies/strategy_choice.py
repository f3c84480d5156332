"""Which path refits take: the fastest of those that give what one by one gives."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ifloo.refit.recipe import Refitter
from ifloo.refit.strategies import ChordReplicas, StackedReplicas, StrategyError
from ifloo.refit.strategies.base import OneByOne, RefitStrategy

logger = logging.getLogger(__name__)


@runtime_checkable
class Kind(Protocol):
    """The class of a path that trains many refits at once."""

    @property
    def name(self) -> str: ...

    def __call__(self, refitter: Refitter, at_once: int | None = None, /) -> RefitStrategy:
        """The path with so many refits at once; raises PathError where it does not serve."""
        ...


# Many at once, fastest first.
KINDS: Sequence[Kind] = (ChordReplicas, StackedReplicas)


def choose_strategy(refitter: Refitter, replicas: int | None, kinds: Sequence[Kind] = KINDS) -> RefitStrategy:
    """The path of refits; one log line says which and why.

    Args:
        refitter: whose refits they are.
        replicas: 1: one by one; more: that many at once; None: the fastest that serves.
        kinds: of paths that train many at once, in order of preference.

    Raises:
        StrategyError: more than one at once was asked for, and no path serves.
    """
    if replicas == 1:
        return _said(OneByOne(refitter), "refit.replicas = 1")
    reasons = []
    for kind in kinds:
        try:
            path = kind(refitter, replicas)
        except StrategyError as error:
            reasons.append(f"{kind.name}: {error}")
            continue
        if path.at_once > 1:
            return _said(path, *reasons)
        reasons.append(f"{kind.name}: more than one at once would not pay")
    if replicas is not None:
        raise StrategyError(_none_serves(replicas, reasons))
    return _said(OneByOne(refitter), *reasons)


def _said(path: RefitStrategy, *reasons: str) -> RefitStrategy:
    what = path.name if path.at_once == 1 else f"{path.name}, {path.at_once} at once"
    logger.info("refits: %s%s", what, f" ({'; '.join(reasons)})" if reasons else "")
    return path


def _none_serves(replicas: int, reasons: Sequence[str]) -> str:
    return (
        f"refit.replicas = {replicas} asks for {replicas} refits in one fit, which would not give what refits one by "
        "one give:\n" + "".join(f"  {reason}\n" for reason in reasons) + "  Leave refit.replicas out, or set it to 1."
    )
