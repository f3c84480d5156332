"""Expected shares of samples in batches by counting: independent truths for the weights c_i of an epoch."""

import itertools
import math

import torch


def by_enumeration(a, b):
    """E[1{i in B} a_i / Σ_B a] over all subsets B of b samples."""
    found, count = torch.zeros(len(a), dtype=torch.float64), 0
    for batch in map(list, itertools.combinations(range(len(a)), b)):
        count += 1
        if (total := a[batch].sum()) > 0:
            found[batch] += a[batch] / total
    return found / count


def by_counts(a, b):
    """The same from the numbers of samples of each weight in a batch, which are multivariate hypergeometric."""
    values, counts = torch.unique(a.double(), return_counts=True)
    values, counts = values.tolist(), counts.tolist()
    each = dict.fromkeys(values, 0.0)
    for held in itertools.product(*(range(min(b, count) + 1) for count in counts)):
        total = sum(k * v for k, v in zip(held, values, strict=True))
        if sum(held) != b or not total:
            continue
        ways = math.prod(math.comb(count, k) for count, k in zip(counts, held, strict=True)) / math.comb(len(a), b)
        for v, k, count in zip(values, held, counts, strict=True):
            each[v] += ways * k / count * v / total
    return torch.tensor([each[v] for v in a.double().tolist()], dtype=torch.float64)


def of_shuffles(a, b):
    """c_i of shuffled epochs in batches of b, the last one shorter."""
    n, rest = len(a), len(a) % b
    sizes = [b] * (n // b) + [rest] * (rest > 0)
    return sum(by_counts(a, size) for size in sizes) / len(sizes)
