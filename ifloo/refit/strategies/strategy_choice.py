"""Choice of the refit strategy: the fastest whose refits end where refits one by one do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ifloo.refit.refitter import Refitter
from ifloo.refit.strategies import ChordReplicas, StackedReplicas, StrategyError
from ifloo.refit.strategies.base import OneByOne, RefitStrategy

logger = logging.getLogger(__name__)


@runtime_checkable
class Kind(Protocol):
    """Class of a strategy that trains many refits at once."""

    @property
    def words(self) -> str: ...

    def __call__(self, refitter: Refitter, max_at_once: int | None = None, /) -> RefitStrategy:
        """Makes the strategy for so many refits at once; raises `StrategyError` if it does not suit the refits."""
        ...


KINDS: Sequence[Kind] = (ChordReplicas, StackedReplicas)
"""Strategies that train many refits at once, fastest first."""


def choose_strategy(refitter: Refitter, replicas: int | None, kinds: Sequence[Kind] = KINDS) -> RefitStrategy:
    """Chooses a strategy, and logs one line with it and the reasons against the others.

    Args:
        refitter: Refitter of the base fit.
        replicas: Number of refits to train at once; 1 trains one by one; None takes the fastest suitable strategy.
        kinds: Strategies that train many refits at once, in order of preference.

    Raises:
        StrategyError: If `replicas` is more than 1 and no strategy of `kinds` is suitable.
    """
    if replicas == 1:
        return _logged(OneByOne(refitter), "refit.replicas = 1")
    reasons = []
    for kind in kinds:
        try:
            strategy = kind(refitter, replicas)
        except StrategyError as error:
            reasons.append(f"{kind.words}: {error}")
            continue
        if strategy.max_at_once > 1:
            return _logged(strategy, *(f"not {one}" for one in reasons))
        reasons.append(f"{kind.words}: more than one at once would not pay")
    if replicas is not None:
        raise StrategyError(_none_suitable(replicas, reasons))
    return _logged(OneByOne(refitter), *(f"not {one}" for one in reasons))


def _logged(strategy: RefitStrategy, *reasons: str) -> RefitStrategy:
    """Logs the choice and returns it."""
    choice = strategy.words if strategy.max_at_once == 1 else f"{strategy.max_at_once} at once, {strategy.words}"
    logger.info("refits: %s%s", choice, f" ({'; '.join(reasons)})" if reasons else "")
    return strategy


def _none_suitable(replicas: int, reasons: Sequence[str]) -> str:
    return (
        f"refit.replicas = {replicas} asks for {replicas} refits in one fit, which would not give what refits one by "
        "one give:\n" + "".join(f"  {reason}\n" for reason in reasons) + "  Leave refit.replicas out, or set it to 1."
    )
