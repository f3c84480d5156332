"""Weights of samples in the loss of a batch: class weights, means over valid tokens, found from gradients.

The loss of a batch is taken to be Σ a_i ℓ_i / Σ a_i with one weight a_i per sample. The loss of two samples i and r has
the gradient t ∇ℓ_i + (1 - t) ∇ℓ_r with t = a_i / (a_i + a_r), and least squares gives t. Weights that depend on a value
that the sample carries, such as its class, are found from one pair per value. A rule counts as found only if it gives
the gradient of every compared batch to rounding.

Errors. An error δ of t changes a_i = a_r t / (1 - t) by δ / (t (1 - t)) of itself. Samples with the share s of all
weight change the weighted mean by s (1 - s) <= 1/4 of that. Equal weights (t = 1/2) hence add as much as rounding
allows, and a weight of 30 adds 8 times that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.objective.batches import Batch, tensors_of
from ifloo.objective.certificate import WeightTable
from ifloo.objective.step_comparison import BatchOfSingles, Samples, TrainingStep, Without

Keys: TypeAlias = Mapping[str, float]  # what a sample's weight may depend on, by a noun phrase
KeysOf: TypeAlias = Callable[[object], Keys]

IGNORED = (-100, -1, 0, 255)  # labels and padding that losses commonly leave out
TABLE = 128  # largest number of different values of a rule
REMEMBERED = 2000  # samples whose weights are kept, and the samples with them
REFERENCES = 4  # samples that others are compared with; the one whose gradient differs most is taken
VALUE, COUNT = "the value of", "the number of"  # first words of the rules
NEGLIGIBLE = 1e-3  # t of a sample whose weight is nearly zero, the error of which then changes nothing
OWN = "a number of its own for each sample"  # rule by which weights follow from nothing that a sample carries


def sample_keys(batch: Batch) -> dict[str, float]:
    """Returns what the weight of a sample may depend on, from its batch of one."""
    keys: dict[str, float] = {}
    for name, x in _named(batch, "the batch"):
        if x.is_complex():
            continue
        if x.numel() == 1:
            keys[f"{VALUE} {name}"] = float(x)
        elif not x.is_floating_point() and x.dtype is not torch.bool:
            keys[f"{COUNT} entries of {name}"] = float(x.numel())
            keys |= {f"{COUNT} entries of {name} other than {v}": float((x != v).sum()) for v in IGNORED}
        elif x.numel() and ((x == 0) | (x == 1)).all():
            keys[f"{COUNT} nonzero entries of {name}"] = float(x.sum())
    return keys


def _named(batch: Batch, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _named(value, f"'{key}'")
    elif isinstance(batch, (tuple, list)):
        for position, value in enumerate(batch):
            yield from _named(value, f"item {position}")
    elif isinstance(batch, Tensor):
        yield name, batch
    else:
        for position, tensor in enumerate(tensors_of(batch)):
            yield f"tensor {position} of {type(batch).__name__}", tensor


@dataclass(frozen=True)
class ComparedBatch:
    """A batch with what rounding allows.

    Attributes:
        singles: Gradients of its samples.
        trained: Gradient of the training step, without that of the penalty that is outside the sample losses.
        bound: Norm of a difference that rounding allows.
    """

    singles: BatchOfSingles
    trained: Tensor
    bound: float


@dataclass
class BatchWeights:
    """Weights that were found.

    Attributes:
        rule: Noun phrase for what a weight depends on.
        shift: Number that is subtracted from the value of the rule, which is the weight; None where `values` holds it.
        values: Weight of each value of the rule.
        keys_of: Function of a sample that returns the values of all rules.
        probe: Function of a sample that finds its weight from a pair.
    """

    rule: str
    shift: int | None
    values: dict[float, float]
    keys_of: KeysOf = field(repr=False)
    probe: Callable[[object], float] = field(repr=False)

    def of(self, sample: object) -> float:
        """Returns the weight of a sample, from a pair if it has a value that no sample had before.

        Raises:
            NoWeightsError: If the gradient of the pair is no weighted mean.
        """
        if self.rule == OWN:
            return self.probe(sample)
        value = self.keys_of(sample)[self.rule]
        if self.shift is not None:
            return max(value - self.shift, 0.0)
        if value not in self.values:
            self.values[value] = self.probe(sample)
        return self.values[value]

    def of_all(self, samples: Samples) -> Float[Tensor, " b"]:
        """Returns the weights of several samples."""
        return torch.tensor([self.of(sample) for sample in samples], dtype=torch.float64)

    def explain(self, batches: Sequence[ComparedBatch]) -> bool:
        """Tells whether the weighted mean is the gradient of the step on every batch, to rounding."""
        for batch in batches:
            weights = self.of_all(batch.singles.samples)
            if not float(weights.sum()) > 0:
                return False
            difference = batch.singles.weighted(weights) - batch.trained
            if not float(difference.norm()) <= self.allowance * batch.bound:
                return False
        return True

    @property
    def allowance(self) -> float:
        """Ratio of a difference that is allowed, rounding and errors of the weights together, to that of rounding."""
        return 1.0 + (self.probe.amplification if isinstance(self.probe, PairProbe) else 1.0)

    @property
    def table(self) -> WeightTable:
        """Rule and values as plain values; the weight of the smallest value of the rule is 1."""
        if self.shift is not None:
            return WeightTable(f"{self.rule}{f' less {self.shift}' if self.shift else ''}", {})
        unit = self.values[min(self.values)] if self.values else 1.0
        return WeightTable(self.rule, {f"{key:g}": self.values[key] / (unit or 1.0) for key in sorted(self.values)})


class NoWeightsError(Exception):
    """Signals that the loss of a pair is no weighted mean of the losses of its samples."""


class PairProbe:
    """Finder of the weight of a sample from the gradient of batches of two."""

    def __init__(self, step: TrainingStep, batches: Sequence[ComparedBatch], without: Without, penalty: Tensor) -> None:
        """Chooses the samples that others are compared with, and finds their weights."""
        self.step, self.without, self.penalty = step, without, penalty
        self.amplification = 1.0  # largest 1 / (4 t (1 - t)) of the pairs
        self._found: dict[int, tuple[object, float]] = {}  # with the sample, whose identity no other then has
        first = batches[0].singles
        self.size, self.singles = first.size, first.singles
        # Roundings are independent: the mean of a pair has √(b/2) times the noise of a mean of b.
        self.noise = max(x.bound * math.sqrt(len(x.singles.samples) / 2) for x in batches)
        last = len(first.samples) - 1
        chosen = sorted({k * last // (REFERENCES - 1) for k in range(REFERENCES)})
        self.references = [(first.samples[chosen[0]], first.row(chosen[0]), 1.0)]
        self._found[id(first.samples[chosen[0]])] = first.samples[chosen[0]], 1.0
        for k in chosen[1:]:
            with suppress(NoWeightsError):  # two samples that are fitted well, whose gradients hardly differ
                self.references.append((first.samples[k], first.row(k), self(first.samples[k])))

    def __call__(self, sample: object) -> float:
        """Returns the weight of a sample; that of the first reference is 1.

        Raises:
            NoWeightsError: If the gradient of the pair is no weighted mean of those of its samples.
        """
        if (known := self._found.get(id(sample))) is not None:
            return known[1]
        weight = self._of_pair(sample)
        if len(self._found) < REMEMBERED:
            self._found[id(sample)] = sample, weight
        return weight

    def _of_pair(self, sample: object) -> float:
        own = self.singles([sample])[0]
        other, reference, weight = max(self.references, key=lambda r: float((own - r[1]).norm()))
        direction, gap = own - reference, float((own - reference).norm())
        if sample is other:
            return weight
        size = max(self.size, float(own.norm() + reference.norm()) / 2)
        bound = 2 * self.noise * size / (self.size or 1.0)
        if not gap > 100 * bound:  # also where a gradient is not finite
            raise NoWeightsError
        pair = self.step.gradient([sample, other], self.without) - self.penalty
        t = float((pair - reference) @ direction) / gap**2
        residual = float((pair - reference - t * direction).norm())
        if not (residual <= bound and -bound <= t * gap and t <= 0.999):
            raise NoWeightsError
        if t > NEGLIGIBLE:
            self.amplification = max(self.amplification, 1 / (4 * t * (1 - t)))
        return weight * max(t, 0.0) / (1 - max(t, 0.0))


def find_weights(
    step: TrainingStep, batches: Sequence[ComparedBatch], keys_of: KeysOf, without: Without, penalty: Tensor
) -> BatchWeights | None:
    """Finds weights that give the gradient of every batch; None if there are none.

    Args:
        step: Training step.
        batches: Batches to explain.
        keys_of: Function of a sample that returns what its weight may depend on.
        without: Parts of the step that are taken away.
        penalty: Gradient that the step adds to the weighted mean.
    """
    keys = [[keys_of(sample) for sample in batch.singles.samples] for batch in batches]
    rows = [row for batch in keys for row in batch]
    names = [name for name in rows[0] if all(name in row for row in rows) and len({row[name] for row in rows}) > 1]
    for name in names:
        for shift in (0, 1) if name.startswith(COUNT) else (0,):
            found = BatchWeights(name, shift, {}, keys_of, _no_probe)
            if found.explain(batches):
                return found
    try:
        probe = PairProbe(step, batches, without, penalty)
        for name in names:
            if len({row[name] for row in rows}) <= TABLE:
                table = BatchWeights(name, None, {}, keys_of, probe)
                if table.explain(batches):
                    return table
        own = BatchWeights(OWN, None, {}, keys_of, probe)
        return own if own.explain(batches) else None
    except NoWeightsError:
        return None


def _no_probe(sample: object) -> float:
    raise NoWeightsError
