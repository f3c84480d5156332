"""Strategies of refits: one by one, or many replicas in one fit; all give the same results."""

from ifloo.refit.strategies.base import OneByOne, RefitStrategy, RefitTask, StrategyError
from ifloo.refit.strategies.chord import ChordReplicas
from ifloo.refit.strategies.stacked import StackedReplicas

__all__ = ["ChordReplicas", "OneByOne", "RefitStrategy", "RefitTask", "StackedReplicas", "StrategyError"]
