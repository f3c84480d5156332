"""LiSSA: a truncated Neumann series on sampled curvature (Agarwal, Bullins & Hazan 2017; Koh & Liang 2017, sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifloo.curvature import BatchSampler, LinearOperator, batch_sampler
from ifloo.errors import InputError
from ifloo.progress import OnProgress, no_progress
from ifloo.solvers.base import NOT_FINITE_ADVICE, Prepared, Solution, Solver, Status, relative_residual

GROWTH = 10  # if every batch contracts, the t-th iterate is at most t + 1 times b; ten times that counts as divergence
CHECK_STEPS = 50  # number of steps between checks of the norm of the iterates, each of which synchronises the device
SCALE_MARGIN = 1.25  # ratio of the scale to the largest eigenvalue of sampled batches, which others may exceed
BATCHES_FOR_SCALE = 256  # number of samples, in batches, from which the scale is estimated
POWER_STEPS = 15  # number of steps of the power iteration


@dataclass(frozen=True)
class LiSSA(Solver):
    """The recursion `h <- v + h − A_batch h / scale`, `depth` times; the result is h / scale, averaged over `repeats`.

    The solver is stochastic and takes a fixed number of steps: its certificate is the true residual on the full data
    and the standard error between repeats.

    Attributes:
        depth: Number of steps of the recursion.
        repeats: Number of independent recursions, advanced together.
        batch: Number of samples drawn at each step.
        scale: Divisor of the curvature, which must exceed half the largest eigenvalue of every batch's curvature
            (better: the whole of it); None for an estimate from sampled batches, with a margin of 25 %.
        seed: Random seed of the draws.
        max_residual: Largest true residual that counts as solved; None for any.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ifloo.curvature import Damped, Hessian
        >>> from ifloo.models import LogisticRegression
        >>> from ifloo.objective import Objective
        >>> from ifloo.solvers import LiSSA
        >>> model = LogisticRegression(num_features=3, num_classes=2, l2_reg=0.1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> data = TensorDataset(torch.randn(20, 3, generator=draw).double(), torch.arange(20) % 2)
        >>> objective, v = Objective.of(model, DataLoader(data)), torch.linspace(-1, 1, 6).double()
        >>> theta = objective.losses.theta()
        >>> A = Damped(Hessian(objective, theta), 0.1)
        >>> solution = LiSSA(depth=400, repeats=4, batch=20).prepare(A).solve(v[None]).require()
        >>> bool(solution.residual < 0.2)  # after its fixed steps: the true residual is reported, not guaranteed
        True
    """

    depth: int = 1000
    repeats: int = 10
    batch: int = 1
    scale: float | None = None
    seed: int = 0
    max_residual: float | None = None

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            InputError: A count is below 1, or the scale is not positive and finite.
        """
        if min(self.depth, self.repeats, self.batch) < 1:
            raise InputError(
                f"LiSSA needs depth, repeats and batch >= 1, got {self.depth}, {self.repeats} and {self.batch}."
            )
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise InputError(f"LiSSA needs a finite scale > 0, got {self.scale}.")

    def prepare(self, A: LinearOperator, tick: OnProgress = no_progress) -> PreparedLiSSA:
        sampler = batch_sampler(A)
        scale = self.scale or largest_eigenvalue(A, self.batch, self.seed) * SCALE_MARGIN
        return PreparedLiSSA(self, A, sampler, scale)


class PreparedLiSSA(Prepared):
    """LiSSA prepared for one operator, with a known scale."""

    def __init__(self, settings: LiSSA, A: LinearOperator, sampler: BatchSampler, scale: float) -> None:
        self.settings, self.A, self.sampler, self.scale = settings, A, sampler, scale

    def solve(self, B: Float[Tensor, "k p"]) -> Solution:
        settings, finite = self.settings, torch.isfinite(B).all(1)
        repeats, reached, diverged = self._recurse(torch.where(finite[:, None], B, 0.0))
        X = repeats.mean(0)
        error = repeats.std(0) / settings.repeats**0.5 if settings.repeats > 1 else None
        residual = relative_residual(self.A, X, B)
        explanation = self._explain_divergence(reached) if diverged else ""
        judged = [self._judged(r, f, explanation) for r, f in zip(residual.tolist(), finite.tolist(), strict=True)]
        steps = torch.full((len(B),), reached, dtype=torch.int64)
        return Solution(X, residual, steps, tuple(s for s, _ in judged), tuple(a for _, a in judged), error)

    def _judged(self, residual: float, finite: bool, diverged: str) -> tuple[Status, str]:
        if not finite:
            return Status.NOT_FINITE, NOT_FINITE_ADVICE
        if diverged:  # all rows use the same batches and stop together
            return Status.DIVERGED, diverged
        limit = self.settings.max_residual
        if limit is not None and residual > limit:
            return Status.NOT_CONVERGED, self._missed(residual)
        return Status.FIXED_STEPS, ""

    def _recurse(self, B: Float[Tensor, "k p"]) -> tuple[Float[Tensor, "r k p"], int, bool]:
        """Returns the result of each repeat, the number of steps, and whether the recursion diverged."""
        settings, norms = self.settings, B.norm(dim=1)
        generator = torch.Generator().manual_seed(settings.seed)
        V = B.expand(settings.repeats, *B.shape)
        H = V.clone()
        for step in range(1, settings.depth + 1):
            estimate = self.sampler.draw(settings.repeats, settings.batch, generator)
            H = V + H - estimate.matmat(H) / self.scale
            if step % CHECK_STEPS == 0 or step == settings.depth:
                if self.progress:
                    self.progress(step, float("nan"))  # the recursion has no residual of its own
                if not (H.norm(dim=2) <= GROWTH * (step + 1) * norms).all():  # including NaN
                    return H / self.scale, step, True
        return H / self.scale, settings.depth, False

    def _explain_divergence(self, step: int) -> str:
        """Returns the message about a divergence, with its cause by the eigenvalues of sampled batches."""
        settings = self.settings
        worst = largest_eigenvalue(self.A, settings.batch, settings.seed)
        lowest = worst - largest_eigenvalue(self.A, settings.batch, settings.seed, mirrored_at=worst)
        start = (
            f"LiSSA diverged by step {step} with scale {self.scale:.4g}: batches of {settings.batch} have eigenvalues "
        )
        if lowest < -1e-6 * worst and 2 * self.scale > worst:
            return (
                f"{start}down to {lowest:.4g}, along which the recursion grows.\n"
                f"  Raise damping by more than {-lowest * SCALE_MARGIN:.4g}, use curvature GaussNewton, or larger "
                "batches."
            )
        if 2 * self.scale > worst:
            return (
                f"{start}up to {worst:.4g} in {BATCHES_FOR_SCALE} sampled ones; rarer ones are larger still.\n"
                f"  Use scale {2 * self.scale:.4g}, or larger batches."
            )
        return (
            f"{start}up to {worst:.4g}, and the recursion needs scale > {worst / 2:.4g}.\n"
            f"  Use scale {worst * SCALE_MARGIN:.4g} (or leave scale out: it is then estimated), or larger batches."
        )

    def _missed(self, residual: float) -> str:
        return (
            f"LiSSA left a true residual of {residual:.1e}, max_residual is {self.settings.max_residual:.1e}; raise "
            "depth and repeats, or use solver CG."
        )


def largest_eigenvalue(A: LinearOperator, batch: int, seed: int = 0, mirrored_at: float | None = None) -> float:
    """Returns the largest |λ| over sampled batches of one size, by power iteration on all of them at once.

    With `mirrored_at` = c, the operator is cI − A instead: the result is c minus the smallest eigenvalue of A if c
    is at least the largest |λ| of A.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = max(8, BATCHES_FOR_SCALE // batch)
    draw = batch_sampler(A).draw(batches, batch, generator)
    V = torch.randn(batches, 1, A.size, generator=generator, dtype=torch.float64).to(A.device, A.dtype)
    norms = V.norm(dim=2, keepdim=True)
    for _ in range(POWER_STEPS):
        V = V / norms
        V = draw.matmat(V) if mirrored_at is None else mirrored_at * V - draw.matmat(V)
        norms = V.norm(dim=2, keepdim=True).clamp_min(torch.finfo(A.dtype).tiny)
    return float(norms.max())
