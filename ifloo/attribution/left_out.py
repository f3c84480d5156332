"""The loss of every training sample under the model trained without it: leave-one-out cross-validation of a head."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.attribution.downdate import without_sample
from ifloo.attribution.scores import SelfInfluence
from ifloo.curvature import LinearHead
from ifloo.errors import InputError, WorkError
from ifloo.objective.batches import Batch, concatenate_chunks
from ifloo.objective.functional import scoring
from ifloo.progress import OnProgress, no_progress
from ifloo.solvers.cholesky import PreparedCholesky

REMEDY = "Raise the penalty or attribution.damping; self-influence and loss need no such minimum."


def left_out_losses(
    head: LinearHead, prepared: PreparedCholesky, own: SelfInfluence, tick: OnProgress = no_progress
) -> Float[Tensor, " n"]:
    """ℓ_i(θ̂_{−i}) of all n samples, nats, with θ̂_{−i} − θ̂ = (1/n) (H − ∇²ℓ_i/n)⁻¹ ∇ℓ_i: w_i = 0, n stays.

    θ̂_{−i} is exact where J is quadratic, and one Newton step for the sample that is left out elsewhere; ℓ_i is the loss
    itself, not its first order. It costs an inverse (2/3 q³ operations) and n q², no solve for each sample.

    Source: Cook & Weisberg 1982, Residuals and Influence in Regression, sec. 2.2 (linear), 5.2 (one step).

    Args:
        head: H of one linear layer, passed at one position by each sample.
        prepared: a factor of it.
        own: self-influence by the same, which the result is held against.
        tick: told how many samples are done.

    Raises:
        InputError: a sample passes the layer at several positions (a sequence).
        SolveError: without one of the samples there is no minimum.
        WorkError: −s[i, i] is not what `own` says it is.
    """
    if (positions := head.chunks[0].inputs.shape[1]) > 1:
        raise InputError(
            f"Losses of samples left out are for one position for each sample; here each has {positions}.\n"
            "  Rank by self-influence or loss."
        )
    inverse = torch.cholesky_inverse(prepared.factor)
    expected = own.value.split([len(chunk.ids) for chunk in head.chunks])
    batches = (batch for _, batch in head.objective.data.with_ids())
    chunks = (_of_chunk(head, inverse, k, batch, expected[k]) for k, batch in enumerate(batches))
    return concatenate_chunks(chunks, head.n, tick)


def _of_chunk(
    head: LinearHead, inverse: Float[Tensor, "q q"], chunk: int, batch: Batch, expected: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """ℓ_i(θ̂_{−i}) of the samples of one chunk, whose self-influence must be what is expected."""
    A = _sandwiches(head, inverse, chunk)
    slopes = head.chunks[chunk].residuals[:, 0] @ head.basis
    _held_against(expected, torch.einsum("br,brs,bs->b", slopes, A, slopes) / head.n)
    second = head.basis.T @ head.seconds[chunk][:, 0] @ head.basis
    inner = without_sample(second @ A / head.n, slopes, "one of the samples", REMEDY)
    moved = torch.einsum("brs,bs->br", A, inner) / head.n
    with torch.no_grad(), scoring(head.objective.losses.module):
        inputs, shape = head.layer.inputs(head.theta, batch)
        outputs = head.layer.outputs(head.theta, inputs) + (moved @ head.basis.T).unsqueeze(1)
        return head.layer.losses_of(head.theta, outputs, batch, shape)


def _sandwiches(head: LinearHead, inverse: Float[Tensor, "q q"], chunk: int) -> Float[Tensor, "b r r"]:
    """B_i H⁻¹ B_iᵀ of one chunk: entry (a, c) is x_iᵀ (H⁻¹)_ac x_i, one matrix product for all its samples."""
    x, r = head.chunks[chunk].inputs[:, 0], head.basis.shape[1]
    d = x.shape[1]
    A = x.new_empty(len(x), r, r)
    for a in range(r):
        for c in range(a + 1):
            block = inverse[a * d : (a + 1) * d, c * d : (c + 1) * d]
            A[:, a, c] = A[:, c, a] = ((x @ block) * x).sum(1)
    return A


def _held_against(expected: Float[Tensor, " b"], found: Float[Tensor, " b"]) -> None:
    """Two ways to the same self-influence: half of the digits at least must agree.

    Raises:
        WorkError: they do not.
    """
    apart = float(((found - expected).abs() / expected.clamp_min(torch.finfo(expected.dtype).tiny)).max())
    if not apart <= 10 * torch.finfo(expected.dtype).eps ** 0.5:
        raise WorkError(
            f"The inverse of the curvature gives self-influences that differ by {apart:.1e} from those of the solves: "
            f"it is too ill-conditioned for {expected.dtype}.\n  Use attribution.dtype float64, or a larger penalty."
        )
