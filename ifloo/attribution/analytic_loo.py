"""Leave-one-out losses of a linear head: the loss of each training sample under the model trained without it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.attribution.downdate import without_sample
from ifloo.attribution.scores import SelfInfluence
from ifloo.curvature import LinearHead
from ifloo.errors import InputError, WorkError
from ifloo.objective.batches import Batch, concatenate_chunks, without_factors
from ifloo.objective.functional import scoring
from ifloo.progress import OnProgress, no_progress
from ifloo.solvers.cholesky import PreparedCholesky

REMEDY = "Raise the penalty or attribution.damping; self-influence and loss need no such minimum."


def left_out_losses(
    head: LinearHead, prepared: PreparedCholesky, own: SelfInfluence, tick: OnProgress = no_progress
) -> Float[Tensor, " n"]:
    """Computes ℓ_i(θ̂_{−i}) of all n samples, nats, with θ̂_{−i} − θ̂ = (1/n) (H − ∇²ℓ_i/n)⁻¹ ∇ℓ_i: w_i = 0, n stays.

    In J = Σ c_i ℓ_i + R the weight c_i takes the place of 1/n; ℓ_i itself has no weight.

    θ̂_{−i} is exact if J is quadratic, and otherwise one Newton step from θ̂. ℓ_i is the full loss, not its first order.
    The cost is one inverse (2/3 q³ operations) and n q² operations; no sample needs a solve.

    Source: Cook & Weisberg 1982, Residuals and Influence in Regression, sec. 2.2 (linear), 5.2 (one step).

    Args:
        head: H of one linear layer that each sample passes at one position.
        prepared: Cholesky factor of `head`.
        own: Self-influence computed with the same factor, as a check.
        tick: Callback that receives the number of finished samples.

    Returns:
        The losses in the order of the training data, `[n]`.

    Raises:
        InputError: If a sample passes the layer at several positions (a sequence).
        SolveError: If J without one of the samples has no minimum.
        WorkError: If −s[i, i] from the inverse differs from `own`.
    """
    if (positions := head.chunks[0].inputs.shape[1]) > 1:
        raise InputError(
            f"Losses of samples left out are for one position for each sample; here each has {positions}.\n"
            "  Rank by self-influence or loss."
        )
    inverse = torch.cholesky_inverse(prepared.factor)
    factors = head.objective.factors
    of_rows = own.value if factors is None else own.value * factors.to(own.value)  # rows are of n c_i ∇ℓ_i
    expected = of_rows.split([len(chunk.ids) for chunk in head.chunks])
    batches = (batch for _, batch in head.objective.data.with_ids())
    chunks = (_of_chunk(head, inverse, k, batch, expected[k]) for k, batch in enumerate(batches))
    return concatenate_chunks(chunks, head.n, tick)


def _of_chunk(
    head: LinearHead, inverse: Float[Tensor, "q q"], chunk: int, batch: Batch, expected: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Computes ℓ_i(θ̂_{−i}) of the samples of one chunk, after a check of their self-influence."""
    A = _quadratic_forms(head, inverse, chunk)
    slopes = head.chunks[chunk].residuals[:, 0] @ head.basis
    _check_self_influence(expected, torch.einsum("br,brs,bs->b", slopes, A, slopes) / head.n)
    second = head.basis.T @ head.seconds[chunk][:, 0] @ head.basis
    inner = without_sample(second @ A / head.n, slopes, "one of the samples", REMEDY)
    change = torch.einsum("brs,bs->br", A, inner) / head.n  # of the outputs, from θ̂ to θ̂_{−i}
    with torch.no_grad(), scoring(head.objective.losses.module):
        plain = without_factors(batch)
        inputs = head.layer.inputs(head.theta, plain)
        outputs = head.layer.outputs(head.theta, inputs) + (change @ head.basis.T).unsqueeze(1)
        return head.layer.losses_of(head.theta, outputs, plain)


def _quadratic_forms(head: LinearHead, inverse: Float[Tensor, "q q"], chunk: int) -> Float[Tensor, "b r r"]:
    """Computes B_i H⁻¹ B_iᵀ of one chunk; entry (a, c), x_iᵀ (H⁻¹)_ac x_i, is one matrix product for all samples."""
    x, r = head.chunks[chunk].inputs[:, 0], head.basis.shape[1]
    d = x.shape[1]
    A = x.new_empty(len(x), r, r)
    for a in range(r):
        for c in range(a + 1):
            block = inverse[a * d : (a + 1) * d, c * d : (c + 1) * d]
            A[:, a, c] = A[:, c, a] = ((x @ block) * x).sum(1)
    return A


def _check_self_influence(expected: Float[Tensor, " b"], found: Float[Tensor, " b"]) -> None:
    """Checks that self-influence from the inverse and from the solves agrees in half of the digits or more.

    Raises:
        WorkError: If fewer digits agree.
    """
    gap = float(((found - expected).abs() / expected.clamp_min(torch.finfo(expected.dtype).tiny)).max())
    if not gap <= 10 * torch.finfo(expected.dtype).eps ** 0.5:
        raise WorkError(
            f"The inverse of the curvature gives self-influences that differ by {gap:.1e} from those of the solves: "
            f"it is too ill-conditioned for {expected.dtype}.\n  Use attribution.dtype float64, or a larger penalty."
        )
