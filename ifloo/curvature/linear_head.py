"""The exact Hessian of a generalised linear head, from weighted Gram matrices of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vjp

from ifloo.curvature.damped import Damped
from ifloo.curvature.gram import Gram, head_core
from ifloo.curvature.head_layer import ROUNDING, HeadLayer
from ifloo.curvature.head_rows import HeadRows, refuse_other_uses, second_derivatives
from ifloo.curvature.hessian import Hessian
from ifloo.curvature.operator import Definite, LinearOperator, Sampler
from ifloo.curvature.sample_mean import whole_data
from ifloo.curvature.structure import Core, Cost, DenseForm, KroneckerFactors, Structure
from ifloo.errors import InputError, WorkError
from ifloo.objective.batches import Batch, batch_size, slice_batch, to_device
from ifloo.objective.functional import scoring
from ifloo.objective.objective import Objective
from ifloo.progress import OnProgress, no_progress

# Bytes of inputs per block of a product: they stay in the processor's cache between its two passes.
CACHED_BYTES = 6 << 20
CHECKED = 32  # samples on which other uses of the weights are sought


class LinearHead(LinearOperator):
    """H = (1/n) Σ_i w_i Σ_t S_it ⊗ x_it x_itᵀ + ∇²R for one linear layer z = W x + b on fixed inputs.

    The operator equals the `Hessian` (and the `GaussNewton`) of the same parameters, but its matrix is known without p
    products. It is exact for any function from outputs to losses that does not couple positions. The penalty must be
    diagonal and the same for all classes, as ½λ‖θ‖² is, with or without the bias.

    Attributes:
        objective: Objective J(θ; w).
        theta: Parameters θ at which the Hessian is taken, `[p]`.
        layer: Linear layer with its losses.
        chunks: Inputs and residuals of the training samples, batch by batch.
        seconds: Second derivatives S of the losses in the outputs, times the sample weights, `[b, t, c, c]` per batch.
        live: Indices of the inputs that are not zero in all samples; only these enter the core.
        basis: Orthonormal basis of the outputs, `[c, r]`: the classes, or, if S has zero row sums (softmax), the
            complement of (1, …, 1).
        penalties: Second derivative of R in the weights of each input, `[d]`.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ifloo.curvature import Hessian, LinearHead
        >>> from ifloo.models import LogisticRegression
        >>> from ifloo.objective import Objective
        >>> model = LogisticRegression(num_features=3, num_classes=2, l2_reg=0.1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> data = TensorDataset(torch.randn(20, 3, generator=draw).double(), torch.arange(20) % 2)
        >>> objective, v = Objective.of(model, DataLoader(data)), torch.linspace(-1, 1, 6).double()
        >>> theta = objective.losses.theta()
        >>> head = LinearHead(objective, theta)
        >>> torch.allclose(head @ v, Hessian(objective, theta) @ v)
        True
    """

    definite = Definite.UNKNOWN

    def __init__(self, objective: Objective, theta: Float[Tensor, " p"]) -> None:
        """Runs all samples through the module once and keeps the inputs of the layer, n · d numbers.

        Raises:
            InputError: The attributed parameters are not one linear layer on fixed inputs, its loss couples positions,
                or the penalty is not of the form above.
            WorkError: The loss has no finite second derivative.
        """
        self.objective, self.theta = objective, theta.detach()
        self.layer = HeadLayer.of(objective.losses)
        self.size, self.dtype, self.device = theta.numel(), theta.dtype, theta.device
        self.penalties = _penalties(self.layer, self.theta)
        self.chunks: list[HeadRows] = []
        self.seconds: list[Tensor] = []
        for ids, batch in objective.data.with_ids():
            if not self.chunks:
                refuse_other_uses(self.layer, self.theta, slice_batch(batch, slice(0, CHECKED)))
            rows, S = second_derivatives(self.layer, self.theta, ids, batch)
            if not bool(torch.isfinite(S).all()):
                raise WorkError(_not_finite(ids[~torch.isfinite(S).flatten(1).all(1)]))
            self.seconds.append(objective.weights.of(ids, S.dtype)[:, None, None, None] * S)
            self.chunks.append(rows)
        used = torch.stack([(c.inputs != 0).flatten(0, 1).any(0) for c in self.chunks]).any(0)
        self.live = used.nonzero().squeeze(1)
        if not bool(used.all()):
            self.chunks = [replace(c, inputs=c.inputs.index_select(-1, self.live)) for c in self.chunks]
        self.basis = _basis(self.seconds, [c.residuals for c in self.chunks])
        self._core: Core | None = None

    @staticmethod
    def bytes_kept(objective: Objective) -> int:
        """Returns the memory for inputs and output curvatures of all samples, bytes, if all are as long as the first.

        Returns 0 without an error if the parameters are no linear head; the constructor raises that error.
        """
        try:
            layer = HeadLayer.of(objective.losses)
            with scoring(objective.losses.module):
                positions = layer.positions(objective.losses.theta(), next(objective.data.with_ids())[1])
        except InputError:
            return 0
        return objective.n * positions * (layer.columns + layer.classes**2) * objective.losses.space.dtype.itemsize

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.objective.n

    def rows_of(self, batch: Batch) -> HeadRows:
        """Computes the rows of other samples (queries), with all inputs."""
        on_device = to_device(batch, self.device, self.dtype)
        return HeadRows.of(self.layer, self.theta, torch.arange(batch_size(batch)), on_device)

    def matmat(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        if self._core is not None:
            return self._core.product(V)
        return self.streamed(V)

    def streamed(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """Returns H v of each row from one pass over the samples, block by block so that inputs stay in the cache."""
        M = self.layer.matrices(V)
        k, c = M.shape[:2]
        live = M.index_select(-1, self.live).flatten(0, 1)  # [kc, d]
        total = torch.zeros_like(live)
        for x, S in self._blocks():
            u = (x @ live.T).view(-1, k, c)
            total.addmm_((u @ S).reshape(-1, k * c).T, x)
        out = self.penalties * M
        return self.layer.flat(out.index_add_(-1, self.live, total.view(k, c, -1) / self.n))

    def core(self, tick: OnProgress = no_progress) -> Core:
        """Returns the dense core over live inputs and `basis`, built once and checked by a product over the samples.

        Raises:
            WorkError: The core differs from the matrix of those products.
        """
        if self._core is None:
            inputs = [c.inputs.flatten(0, 1) for c in self.chunks]
            seconds = [S.flatten(0, 1) for S in self.seconds]
            matrix = head_core(Gram(inputs), seconds, self.basis, tick).div_(self.n)
            inside = self.penalties[self.live].repeat(self.basis.shape[1])
            matrix.diagonal().add_(inside)
            rest = self.layer.flat(self.penalties.expand(1, self.layer.classes, -1))[0].clone()
            core = Core(matrix, rest, inside, self.reduce, self.expand)
            self._check_matrix(core)
            self._core = core
        return self._core

    @property
    def sampler(self) -> Sampler:
        return _HeadSampler(self)

    @property
    def structure(self) -> Structure:
        dense = DenseForm(self.core, lambda: self._core is not None, self.streamed)
        return Structure(self.cost, dense, self.kronecker)

    def reduce(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k q"]:
        """Returns the coordinates of each row in the core."""
        M = self.layer.matrices(V).index_select(-1, self.live)
        return (self.basis.T @ M).flatten(1)

    def expand(self, U: Float[Tensor, "k q"]) -> Float[Tensor, "k p"]:
        """Returns the vectors with these coordinates."""
        M = self.basis @ U.view(len(U), self.basis.shape[1], len(self.live))
        full = M.new_zeros(len(U), self.layer.classes, self.layer.columns)
        return self.layer.flat(full.index_copy_(-1, self.live, M))

    @cached_property
    def core_size(self) -> int:
        """q, the number of rows of the core."""
        return self.basis.shape[1] * len(self.live)

    @property
    def cost(self) -> Cost:
        """Floating-point operations of a product over the samples and of the core, which has `core_size` rows."""
        c, d, r = self.layer.classes, len(self.live), self.basis.shape[1]
        samples = sum(x.inputs.shape[0] * x.inputs.shape[1] for x in self.chunks)
        grams = c * (c - 1) / 2 + (c if r == c else 0)
        return Cost(product=4.0 * samples * d * c, core=samples * d**2 * grams, size=self.core_size)

    @cached_property
    def lower_bound(self) -> float:
        """Lower bound on all eigenvalues: the smallest of `penalties`, less what the samples may take from it.

        By Gershgorin's theorem S_it ⪰ −e_it I with e_it = max(0, max_a Σ_{b≠a} |S_ab| − S_aa), 0 for softmax,
        logistic, least-squares and Poisson losses up to rounding. Σ e_it ‖x_it‖² / n is then subtracted.
        """
        taken = 0.0
        for x, S in self._blocks():
            own = S.diagonal(dim1=-2, dim2=-1)
            deficit = (S.abs().sum(-1) - own.abs() - own).amax(-1).clamp_min(0.0)
            taken += float((deficit * x.square().sum(-1)).sum())
        return float(self.penalties.min()) - taken / self.n

    def kronecker(self) -> KroneckerFactors:
        """Returns second moment of the inputs and mean curvature of the outputs: K-FAC with the exact curvature."""
        samples = sum(c.inputs.shape[0] * c.inputs.shape[1] for c in self.chunks)
        columns = self.layer.columns
        moment = torch.zeros(columns, columns, dtype=self.dtype, device=self.device)
        gram = Gram([c.inputs.flatten(0, 1) for c in self.chunks])
        ones = [c.inputs.new_ones(c.inputs.shape[:2].numel()) for c in self.chunks]
        moment[self.live.unsqueeze(1), self.live] = gram.weighted(ones) / samples
        curvature = torch.stack([S.sum((0, 1)) for S in self.seconds]).sum(0) / self.n
        diagonal = float(self.penalties[self.live].mean())
        return KroneckerFactors(moment, curvature, diagonal, self.layer.matrices, self.layer.flat)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk, S in zip(self.chunks, self.seconds, strict=True):
            x, s = chunk.inputs.flatten(0, 1), S.flatten(0, 1)
            step = max(1, CACHED_BYTES // (x.shape[1] * x.element_size())) if x.device.type == "cpu" else len(x)
            yield from zip(x.split(step), s.split(step), strict=True)

    def _check_matrix(self, core: Core) -> None:
        """Compares a product of the core with one over the samples.

        Raises:
            WorkError: They differ by more than rounding.
        """
        draw = torch.Generator().manual_seed(0)
        v = torch.randn(1, self.size, generator=draw, dtype=torch.float64).to(self.device, self.dtype)
        streamed, dense = self.streamed(v), core.product(v)
        difference, scale = float((streamed - dense).norm()), float(torch.maximum(streamed.norm(), dense.norm()))
        if not difference <= ROUNDING.get(self.dtype, 1e-4) * scale:  # both are 0 for a loss of straight pieces
            raise WorkError(
                f"The dense curvature of layer {self.layer.name!r} differs from its products over the samples by "
                f"{difference / scale if scale else difference:.1e} of them: a fault of memory, or of the code.\n"
                "  Use curvature Hessian, and report this."
            )


def _not_finite(ids: Tensor) -> str:
    return (
        f"The loss has no finite second derivative at this checkpoint for {len(ids)} samples, ids {ids.tolist()[:5]}.\n"
        "  Look at these samples, and score in float64: attribution.dtype."
    )


def _penalties(layer: HeadLayer, theta: Tensor) -> Float[Tensor, " d"]:
    """Returns the second derivative of R in the weights of each input.

    Raises:
        InputError: It is not diagonal, or not the same for all classes.
    """
    pull = vjp(grad(layer.losses.penalty), theta)[1]
    diagonal = layer.matrices(pull(torch.ones_like(theta))[0].unsqueeze(0))[0]
    draw = torch.Generator().manual_seed(0)
    v = torch.randn(theta.shape, generator=draw, dtype=torch.float64).to(theta)
    if_diagonal = diagonal[0] * layer.matrices(v.unsqueeze(0))
    exact = layer.matrices(pull(v)[0].unsqueeze(0))
    scale = torch.maximum(exact.norm(), if_diagonal.norm())
    if not (exact - if_diagonal).norm() <= ROUNDING.get(theta.dtype, 1e-4) * scale:
        raise InputError(
            f"The penalty on layer {layer.name!r} is not diagonal with one strength for each input, the same for all "
            "classes, as ½λ‖θ‖² is.\n  Use curvature Hessian or GaussNewton, which take any penalty."
        )
    return diagonal[0]


def _basis(seconds: list[Tensor], residuals: list[Tensor]) -> Float[Tensor, "c r"]:
    """Returns a basis of the complement of (1, …, 1) if no S and no residual has a part along it, else the identity."""
    c, like = seconds[0].shape[-1], seconds[0]
    largest_entry = max(float(S.abs().max()) for S in seconds)
    largest_row_sum = max(float(S.sum(-1).abs().max()) for S in seconds)
    unit = torch.eye(c, dtype=torch.float64)
    largest_residual_sum = max(float(r.sum(-1).abs().max()) for r in residuals)
    largest_residual = max(float(r.abs().max()) for r in residuals)
    eps = 64 * torch.finfo(like.dtype).eps
    if c > 1 and largest_row_sum <= eps * largest_entry and largest_residual_sum <= eps * largest_residual:
        Q: Tensor = torch.linalg.qr(torch.cat([torch.ones(c, 1, dtype=torch.float64), unit[:, 1:]], 1)).Q
        return Q[:, 1:].to(like)
    return unit.to(like)


class _HeadSampler(Sampler):
    def __init__(self, head: LinearHead) -> None:
        self._head = head

    def subsampled(self, rows: int, generator: torch.Generator) -> LinearHead:
        objective = self._head.objective
        return LinearHead(replace(objective, data=whole_data(objective).draw(rows, generator)), self._head.theta)


def as_head(operator: LinearOperator) -> LinearHead | None:
    """Returns the linear head behind an operator with or without damping; None for any other operator."""
    base = operator.base if isinstance(operator, Damped) else operator
    return base if isinstance(base, LinearHead) else None


def head_or_hessian(objective: Objective, theta: Tensor, otherwise: Callable[[str], object]) -> LinearOperator:
    """Returns a `LinearHead` if θ is one linear layer on fixed inputs, or else the `Hessian`; both are the same matrix.

    Args:
        objective: Objective J(θ; w).
        theta: Parameters at which the Hessian is taken.
        otherwise: Function that is called with the reason, in one line, if the result is a `Hessian`.
    """
    try:
        return LinearHead(objective, theta)
    except InputError as error:
        otherwise(str(error).splitlines()[0])
        return Hessian(objective, theta)
