r"""Expected share of a sample in the weight of a batch that is drawn without replacement.

A batch of b of n samples with weights a_i has the loss Σ_B a_i ℓ_i / Σ_B a_i, so that sample i enters the mean over
shuffles with c_i = E[1{i in B} a_i / Σ_B a]. With 1 / S = ∫_0^∞ exp(-t S) dt and x_i = exp(-t a_i),

    c_i = ∫_0^∞ a_i π_i(t) Φ(t) dt,    Φ = E exp(-t Σ_B a) = e_b(x) / C(n, b),    π_i = x_i e_{b-1}(x but i) / e_b(x),

e_b the elementary symmetric polynomial. For any r > 0, with independent indicators of probability p_i = r x_i / (1 + r
x_i) and their sum X: e_b(x) = Π (1 + r x_i) r^-b P(X = b) and π_i = p_i P(X but i = b - 1) / P(X = b), the probability
that conditional Poisson sampling holds i (Chen, Dempster & Liu 1994, Biometrika 81, 457). With r such that Σ p_i = b no
probability is small, and each is a sum over M points on a circle: exact for M > n, and for smaller M up to
P(|X - b| >= M), which is below the rounding of float64 for the M of `_points`. The integral over log t is a trapezoidal
sum of step h, whose error falls like exp(-π² / h): 1e-17 here. Equal weights are one term. Of very many different ones
the smallest are taken one by one; groups of neighbours among the others are replaced by the two values with the same
moments up to the third, and the result, a smooth function of log a, is interpolated through Chebyshev points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.errors import InputError

STEP = 0.25  # step of the integral over log t
TINY = 1e-18  # t below this times the inverse of the largest sum adds nothing
END = 45.0  # exponent at which exp(-t S) adds nothing
WRONG = 1e-6  # error of the sum of shares from which they are refused
DIFFERENT = 512  # largest number of different weights that are taken one by one
GROUPS = 1024  # groups of neighbours otherwise
FEWEST = 64  # smallest number of weights that are taken one by one beside groups
NODES = 96  # points of the interpolation
NO_CHANCE = 1e-60  # probability that is taken as 0: log1p of torch fails on complex numbers below 1e-150
AT_ONCE = 1 << 21  # complex numbers formed at a time


def expected_shares(weights: Float[Tensor, " n"], sizes: Sequence[int]) -> Float[Tensor, " n"]:
    """Computes E[1{i in B} a_i / Σ_B a] for a batch that is drawn at random.

    Args:
        weights: Relative weights a_i >= 0. A batch without any weight counts as one of no loss.
        sizes: Sizes of the parts of the batch; each part is drawn without replacement from all samples, independently
            of the others. Most batches have one part.

    Returns:
        Expected shares, `[n]`, float64; their sum is the probability that the batch has any weight.

    Raises:
        InputError: The weights lie too far apart for float64.
    """
    a, n = weights.double().cpu(), len(weights)
    if not bool((a > 0).any()):
        return torch.zeros(n, dtype=torch.float64)
    if list(sizes) == [n]:
        return a / a.sum()
    a = a / a[a > 0].mean()
    values, which, counts = torch.unique(a, return_inverse=True, return_counts=True)
    if sum(sizes) == 1 or len(values) == 1:
        return (a > 0).double() * (1 / n)
    found = _of_values(tuple(values.tolist()), tuple(counts.tolist()), tuple(sizes), DIFFERENT)[which]
    total = float(found.sum())
    if not 0 < total <= 1 + WRONG or (bool((a > 0).all()) and total < 1 - WRONG):
        raise InputError(
            f"Weights of samples in the loss of a batch lie a factor of {float(a.max() / a[a > 0].min()):.1g} apart: "
            "their shares of a batch cannot be computed in float64.\n  Give weights that lie less far apart."
        )
    return found


@lru_cache(maxsize=16)  # for scores at several epochs of a fit
def _of_values(
    values: tuple[float, ...], counts: tuple[int, ...], sizes: tuple[int, ...], different: int
) -> Float[Tensor, " k"]:
    """Returns the expected share of a sample with each weight, in ascending order."""
    a, of_each = torch.tensor(values, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64)
    if len(values) <= different:
        return _Population(a, of_each).shares(a, sizes)
    return _by_groups(a, of_each, sizes)


def _by_groups(values: Float[Tensor, " k"], counts: Float[Tensor, " k"], sizes: Sequence[int]) -> Float[Tensor, " k"]:
    """Returns the expected share of each of very many weights; the smallest are taken one by one.

    π of a weight that no sample has is the coefficient of a power series whose radius of convergence is below 1 where
    p > 1/2. Of the weights above 4 b others p is at most 1/4.
    """
    alone = min(max(FEWEST, 4 * sum(sizes)), DIFFERENT)
    rest = values[alone:]
    nodes = _chebyshev(float(rest[0].log()), float(rest[-1].log()))
    grouped = _grouped(rest, counts[alone:])
    population = _Population(torch.cat([values[:alone], grouped.values]), torch.cat([counts[:alone], grouped.counts]))
    found = population.shares(torch.cat([values[:alone], nodes.exp()]), sizes)
    per_weight = _interpolated(nodes, found[alone:] / nodes.exp(), rest.log())
    return torch.cat([found[:alone], rest * per_weight])


@dataclass(frozen=True)
class _Population:
    """Different weights, in ascending order, and the number of samples with each.

    Attributes:
        values: Weights, `[k]`.
        counts: Numbers of samples, `[k]`; of moment-preserving groups they need not be whole.
    """

    values: Float[Tensor, " k"]
    counts: Float[Tensor, " k"]

    @property
    def n(self) -> int:
        """Number of samples."""
        return round(float(self.counts.sum()))

    def shares(self, at: Float[Tensor, " m"], sizes: Sequence[int]) -> Float[Tensor, " m"]:
        """Returns the expected share of a sample with each of these weights."""
        t = self._times(sizes, float(at[at > 0].min()))
        parts = {size: self._part(size, t, at) for size in dict.fromkeys(sizes)}
        log_phi = torch.stack([parts[size][0] for size in sizes]).sum(0)
        held = torch.stack([parts[size][1] for size in sizes]).sum(0)
        return at * ((STEP * t * log_phi.exp()).unsqueeze(1) * held).sum(0)

    def _times(self, sizes: Sequence[int], least: float) -> Float[Tensor, " t"]:
        """Returns the points of the integral, at equal distances of log t."""
        smallest = max(sum(self._sum_of_first(size) for size in sizes), least)
        largest = sum(sizes) * float(self.values[-1])
        first, last = math.log(TINY / largest), math.log(END / smallest)
        return torch.arange(first, last + STEP, STEP, dtype=torch.float64).exp()

    def _sum_of_first(self, size: int) -> float:
        before = self.counts.cumsum(0) - self.counts
        return float((self.values * torch.minimum(self.counts, (size - before).clamp_min(0))).sum())

    def _part(self, size: int, t: Float[Tensor, " t"], at: Float[Tensor, " m"]) -> tuple[Tensor, Tensor]:
        """Returns log Φ, `[t]`, and π of a sample with each weight, `[t, m]`, of a part of this size."""
        n = self.n
        if size == n:
            return -t * float(self.values @ self.counts), torch.ones(len(t), len(at), dtype=torch.float64)
        rho = self._tilt(size, t)
        exponents = rho.unsqueeze(1) - t.unsqueeze(1) * self.values
        over = exponents > 0  # log (1 + e^x) is x + log (1 + e^-x) there; the sum of rho in these x is taken apart
        terms = torch.where(over, -t.unsqueeze(1) * self.values, 0.0) + torch.log1p(torch.exp(-exponents.abs()))
        log_sum = terms @ self.counts - (size - over.double() @ self.counts) * rho
        p_at = torch.sigmoid(rho.unsqueeze(1) - t.unsqueeze(1) * at)
        whole, others = self._probabilities(size, exponents.sigmoid(), p_at)
        log_phi = log_sum + whole.log()
        # At t = 0 this is log C(n, b), with the rounding of the sum: t[0] is 0 to rounding.
        return log_phi - log_phi[0], p_at * others / whole.unsqueeze(1)

    def _tilt(self, size: int, t: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        """Returns log r for each t, with Σ p_i = b; by bisection, which needs no precision."""
        middle = math.log(size / (self.n - size))
        low, high = middle + t * self.values[0], middle + t * self.values[-1]
        for _ in range(60):
            rho = (low + high) / 2
            few = (self.counts * torch.sigmoid(rho.unsqueeze(1) - t.unsqueeze(1) * self.values)).sum(1) < size
            low, high = torch.where(few, rho, low), torch.where(few, high, rho)
        return (low + high) / 2

    def _probabilities(self, size: int, p: Float[Tensor, "t k"], p_at: Float[Tensor, "t m"]) -> tuple[Tensor, Tensor]:
        """Returns P(X = b), `[t]`, and P(X without one = b - 1) for one with each weight, `[t, m]`."""
        points = _points(size, self.n)
        angle = 2 * math.pi / points * torch.arange(points // 2 + 1, dtype=torch.float64)
        z = torch.polar(torch.ones_like(angle), angle)
        fold = torch.full_like(angle, 2 / points)  # the other half of the circle is the conjugate
        fold[0] = 1 / points
        turned, turned_once = fold * z.conj().pow(size), fold * z.conj().pow(size - 1)
        whole, others = [], []
        for p_t, at_t in zip(torch.where(p < NO_CHANCE, 0.0, p), p_at, strict=True):
            log = torch.zeros(len(z), dtype=torch.complex128)
            for first in range(0, len(p_t), max(1, AT_ONCE // len(z))):
                rows = slice(first, first + max(1, AT_ONCE // len(z)))
                terms = torch.log1p(p_t[rows].unsqueeze(1) * (z - 1))
                log += (self.counts[rows].to(terms) @ terms).squeeze()
            phi = log.exp()
            whole.append((turned * phi).real.sum())
            others.append(((turned_once * phi) / (1 + at_t.unsqueeze(1) * (z - 1))).real.sum(1))
        return torch.stack(whole), torch.stack(others)


def _points(size: int, n: int) -> int:
    """Returns the number of points on the circle; odd, so that -1, where a factor may vanish, is none of them."""
    spread = math.sqrt(min(size, n - size))
    return min(n + 1, math.ceil(13 * spread) + 40) | 1


def _grouped(values: Float[Tensor, " k"], counts: Float[Tensor, " k"]) -> _Population:
    """Replaces groups of neighbours by two values with the same number of samples and first three moments."""
    scale = values.log()
    group = ((scale - scale[0]) / (scale[-1] - scale[0]) * GROUPS).long().clamp_max(GROUPS - 1)

    def total(x: Tensor) -> Tensor:
        return torch.zeros(GROUPS, dtype=torch.float64).index_add(0, group, x)

    weight = total(counts)
    used = weight > 0
    mean = total(counts * values) / weight.clamp_min(1)
    off = values - mean[group]
    variance = total(counts * off**2) / weight.clamp_min(1)
    third = total(counts * off**3) / weight.clamp_min(1)
    single = variance <= 1e-30
    skew = torch.where(single, 0.0, third / variance.clamp_min(1e-60))
    root = (skew**2 + 4 * variance).sqrt()
    upper, lower = (skew + root) / 2, (skew - root) / 2  # offsets of the two values
    share = torch.where(single, 1.0, -lower / root.clamp_min(1e-60))  # of the upper one
    found = torch.cat([(mean + upper)[used], (mean + lower)[used & ~single]])
    numbers = torch.cat([(weight * share)[used], (weight * (1 - share))[used & ~single]])
    order = found.argsort()
    return _Population(found[order].clamp_min(0), numbers[order])


def _chebyshev(low: float, high: float) -> Float[Tensor, " m"]:
    cosines = torch.cos(math.pi * (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES)
    return (low + high) / 2 + (high - low) / 2 * cosines


def _interpolated(nodes: Float[Tensor, " m"], found: Float[Tensor, " m"], at: Float[Tensor, " n"]) -> Tensor:
    """Returns the polynomial through values at Chebyshev points, by the barycentric formula."""
    k = torch.arange(NODES, dtype=torch.float64)
    signs = torch.where(k % 2 == 0, 1.0, -1.0) * torch.sin(math.pi * (k + 0.5) / NODES)
    rows = []
    for part in at.split(4096):
        gap = part.unsqueeze(1) - nodes
        terms = signs / torch.where(gap == 0, 1e-300, gap)
        rows.append((terms @ found) / terms.sum(1))
    return torch.cat(rows)
