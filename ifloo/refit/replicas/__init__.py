"""Many refits in one Trainer fit: replicas of the weights, each with other samples removed."""

from ifloo.refit.replicas.chord import ChordReplicas
from ifloo.refit.replicas.refusal import PathError
from ifloo.refit.replicas.stacked import StackedReplicas

__all__ = ["ChordReplicas", "PathError", "StackedReplicas"]
