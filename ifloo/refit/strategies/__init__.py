"""Strategies of refits: one by one, or many replicas in one fit; all give the same results."""

from ifloo.refit.strategies.base import OneByOne, RefitStrategy, RefitTask
from ifloo.refit.strategies.chord import ChordReplicas
from ifloo.refit.strategies.stacked import StackedReplicas
from ifloo.refit.strategies.unsuitable import StrategyError

__all__ = ["ChordReplicas", "OneByOne", "RefitStrategy", "RefitTask", "StackedReplicas", "StrategyError"]
