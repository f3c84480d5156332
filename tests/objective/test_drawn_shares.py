"""Expected share of a sample in the weight of a batch: against enumeration, counting, and random draws."""

import itertools

import pytest
import torch

from ifloo.objective import drawn_shares
from ifloo.objective.drawn_shares import expected_shares
from tests.objective.expected_shares import by_counts, by_enumeration

WEIGHTS = {
    "uniform": lambda n, g: torch.rand(n, generator=g, dtype=torch.float64),
    "few values": lambda n, g: torch.randint(1, 4, (n,), generator=g).double(),
    "some without weight": lambda n, g: torch.randint(0, 3, (n,), generator=g).double(),
    "ten orders of magnitude": lambda n, g: (8 * torch.randn(n, generator=g, dtype=torch.float64)).exp(),
    "two with weight": lambda n, g: torch.tensor([0.0] * (n - 2) + [1.0, 5.0], dtype=torch.float64),
    "equal": lambda n, g: torch.full((n,), 3.0),
}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("n", "b"), [(2, 1), (5, 2), (7, 3), (9, 1), (9, 4), (9, 8), (6, 6), (12, 6)])
def test_small_batches_by_enumeration(n, b, kind):
    a = WEIGHTS[kind](n, torch.Generator().manual_seed(n + b))
    found = expected_shares(a, [b])
    torch.testing.assert_close(found, by_enumeration(a.double(), b), rtol=1e-11, atol=0)


@pytest.mark.parametrize(("n", "b"), [(400, 2), (400, 32), (400, 399), (60_000, 32)])
def test_classes_by_counting(n, b):
    a = torch.tensor([0.0, 1.0, 50.0], dtype=torch.float64)[torch.arange(n) % 17 % 3]
    torch.testing.assert_close(expected_shares(a, [b]), by_counts(a, b), rtol=1e-10, atol=0)


def test_one_batch_of_all_and_batches_of_one():
    a = torch.tensor([1.0, 0.0, 5.0, 2.0])
    assert expected_shares(a, [4]).tolist() == [1 / 8, 0, 5 / 8, 2 / 8]
    assert expected_shares(a, [1]).tolist() == [1 / 4, 0, 1 / 4, 1 / 4]
    assert expected_shares(torch.zeros(3), [2]).tolist() == [0, 0, 0]


def test_a_batch_across_two_shuffles():
    """The end of one shuffle and the beginning of the next, which may hold the same sample."""
    a, found = torch.tensor([1.0, 4.0, 2.5, 0.5], dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    pairs = list(itertools.product(range(4), itertools.combinations(range(4), 2)))
    for one, two in pairs:
        total = a[one] + a[list(two)].sum()
        for i in (one, *two):
            found[i] += a[i] / total
    torch.testing.assert_close(expected_shares(a, [1, 2]), found / len(pairs), rtol=1e-12, atol=0)


@pytest.mark.parametrize("b", [2, 3, 32, 200])
def test_very_many_weights_are_as_those_taken_one_by_one(b, monkeypatch):
    a = torch.randn(600, generator=torch.Generator().manual_seed(b), dtype=torch.float64).exp()
    grouped = expected_shares(a, [b])
    monkeypatch.setattr(drawn_shares, "DIFFERENT", 1000)
    each = expected_shares(a, [b])
    torch.testing.assert_close(grouped, each, rtol=1e-10, atol=0)
    assert not torch.equal(grouped, each)
    assert float(grouped.sum()) == pytest.approx(1, abs=1e-11)


def test_the_mean_of_random_batches_lies_within_five_standard_errors():
    g = torch.Generator().manual_seed(0)
    a = torch.randint(1, 300, (2000,), generator=g).double()
    draws, shares = 4000, torch.zeros(2000, dtype=torch.float64)
    squares = torch.zeros_like(shares)
    for _ in range(draws):
        batch = torch.randperm(2000, generator=g)[:64]
        share = a[batch] / a[batch].sum()
        shares[batch] += share
        squares[batch] += share**2
    found, (low, high) = expected_shares(a, [64]), (a < 40, a > 260)
    for some in (low, high):  # the mean over many samples, whose errors are nearly independent
        mean = shares[some].sum() / draws
        error = (squares[some].sum() / draws**2).sqrt()
        assert abs(found[some].sum() - mean) < 5 * error
