"""Weighted Gram matrices XᵀDX, and the curvature of a linear head built from them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import blas
from torch import Tensor

from ifloo.progress import OnProgress

ROWS = 2048  # number of rows scaled at once: they stay in cache between the scaling and the product
NEGLIGIBLE = 64  # in rounding errors of the largest weight: smaller weights count as zero


class Gram:
    """Sums of XᵀDX over blocks of rows, for any number of weightings D.

    On a CPU a weighting costs n d² operations, half of the cost of XᵀDX as a product of two matrices; rows of negative
    weight are added in a separate update.
    """

    def __init__(self, blocks: Sequence[Float[Tensor, "_b d"]]) -> None:
        """Keeps the blocks of rows X."""
        self.blocks, self.d = blocks, blocks[0].shape[1]
        first = blocks[0]
        self._on_cpu = first.device.type == "cpu" and first.dtype in (torch.float32, torch.float64)

    def weighted(self, weights: Sequence[Float[Tensor, " _b"]]) -> Float[Tensor, "d d"]:
        """Returns Σ_i w_i x_i x_iᵀ, exactly symmetric."""
        if self._on_cpu:
            return torch.from_numpy(_by_rank_k([X.numpy() for X in self.blocks], [w.numpy() for w in weights]))
        total = torch.zeros(self.d, self.d, dtype=self.blocks[0].dtype, device=self.blocks[0].device)
        for X, w in zip(self.blocks, weights, strict=True):
            for x, part in zip(X.split(8 * ROWS), w.split(8 * ROWS), strict=True):
                total.addmm_((x * part.unsqueeze(1)).T, x)
        return total


def _by_rank_k(blocks: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> np.ndarray:
    """Sums by the symmetric rank-k update of BLAS.

    All steps use numpy: the threads of torch and those of scipy's BLAS would wait for each other.
    """
    d, dtype = blocks[0].shape[1], blocks[0].dtype
    total = np.zeros((d, d), dtype)
    for X, w in zip(blocks, weights, strict=True):
        negative = w < 0
        if not negative.any():
            _update(total, X, np.sqrt(w), 1.0)
            continue
        _update(total, X[~negative], np.sqrt(w[~negative]), 1.0)
        _update(total, X[negative], np.sqrt(-w[negative]), -1.0)
    lower = np.tril(total, -1)
    return lower + lower.T + np.diag(np.diagonal(total))


def _update(total: np.ndarray, X: np.ndarray, scale: np.ndarray, sign: float) -> None:
    """Adds sign · (DX)ᵀ(DX) with D = diag(`scale`) to the lower triangle of `total`."""
    update = blas.dsyrk if total.dtype == np.float64 else blas.ssyrk
    buffer = np.empty((min(ROWS, len(X)), X.shape[1]), X.dtype)
    for start in range(0, len(X), ROWS):
        rows = slice(start, min(start + ROWS, len(X)))
        scaled = buffer[: rows.stop - start]
        np.multiply(X[rows], scale[rows, None], out=scaled)
        # BLAS stores matrices by columns: its upper triangle is the lower one of numpy, and its columns are rows.
        update(sign, scaled.T, beta=1.0, c=total.T, trans=0, lower=0, overwrite_c=1)


def head_core(
    gram: Gram,
    seconds: Sequence[Float[Tensor, "_b c c"]],
    basis: Float[Tensor, "c r"],
    tick: OnProgress,
) -> Float[Tensor, "rd rd"]:
    """Returns Σ_i (QᵀS_iQ) ⊗ x_i x_iᵀ, S_i = `seconds`, Q = `basis`, from one Gram matrix per pair of classes.

    The sum uses S = Σ_{a<b} (−S_ab) (e_a − e_b)(e_a − e_b)ᵀ + Σ_a (Σ_b S_ab) e_a e_aᵀ. For a softmax the second sum
    vanishes and every −S_ab = π_a π_b > 0: there are C(C−1)/2 weightings of one sign instead of C(C+1)/2 of mixed
    signs.
    """
    c, r = basis.shape
    unit = torch.eye(c, dtype=basis.dtype, device=basis.device)
    row_sums = [S.sum(-1) for S in seconds]
    largest = max(float(S.abs().max()) for S in seconds)
    floor = NEGLIGIBLE * torch.finfo(basis.dtype).eps * largest
    vectors, weightings = [], []
    for a, b in combinations(range(c), 2):
        vectors.append(unit[a] - unit[b])
        weightings.append([(-S[:, a, b]).contiguous() for S in seconds])
    if not vectors or max(float(s.abs().max()) for s in row_sums) > floor:
        vectors.extend(unit)
        weightings.extend([s[:, a].contiguous() for s in row_sums] for a in range(c))
    projected = torch.stack(vectors) @ basis  # [pairs, r]
    rows, cols = torch.tril_indices(r, r).to(basis.device)
    shares = projected[:, rows] * projected[:, cols]  # [pairs, blocks]
    grams = torch.empty(len(weightings), gram.d * gram.d, dtype=basis.dtype, device=basis.device)
    for k, weighting in enumerate(weightings):
        grams[k] = gram.weighted(weighting).reshape(-1)
        tick(k + 1, len(weightings))
    blocks = (shares.T @ grams).view(-1, gram.d, gram.d)
    del grams
    return _assemble(blocks, rows, cols, r, gram.d)


def _assemble(blocks: Float[Tensor, "q d d"], rows: Tensor, cols: Tensor, r: int, d: int) -> Float[Tensor, "rd rd"]:
    """Builds a symmetric matrix from the blocks of its lower triangle."""
    core = torch.empty(r * d, r * d, dtype=blocks.dtype, device=blocks.device).view(r, d, r, d)
    for block, i, j in zip(blocks, rows.tolist(), cols.tolist(), strict=True):
        core[i, :, j, :] = block
        if i != j:
            core[j, :, i, :] = block.T
    return core.view(r * d, r * d)
