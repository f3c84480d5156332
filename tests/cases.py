"""Table of the operators and solvers that the laws test; a new one is fully tested by one more row."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from ifloo.curvature import (
    BatchSampler,
    Cost,
    Damped,
    Definite,
    GaussNewton,
    Hessian,
    KroneckerFactors,
    LinearHead,
    LinearOperator,
    LockstepDraw,
    SampleMeanOperator,
    Structure,
)
from ifloo.solvers import CG, Auto, Cholesky, Kronecker, LiSSA, Nystrom, Solver, Subsampled
from tests.curvature.heads import HEADS
from tests.problems import Attention, Logistic, Problem, Ridge

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "ridge": Ridge.make,
    "logistic": Logistic.make,
    "attention": Attention.make,
}
problem_of = cache(lambda name: PROBLEMS[name]())
DRAWN = 9  # number of samples of a subsampled operator


@dataclass(frozen=True)
class OperatorCase:
    """An operator for a given batch size, and the matrix it must equal."""

    name: str
    build: Callable[[int], LinearOperator]
    truth: Callable[[], Tensor]

    def __str__(self) -> str:
        return self.name


@cache
def _dense(problem: str, kind: type[SampleMeanOperator]) -> Tensor:
    p = problem_of(problem)
    return p.dense_hessian() if kind is Hessian else p.dense_gauss_newton()


def _of_problem(problem: str, kind: type[SampleMeanOperator], keep: bool, damping: float) -> OperatorCase:
    def build(batch_size: int) -> LinearOperator:
        p = problem_of(problem)
        A = kind(p.objective(batch_size), p.theta, keep)
        return Damped(A, damping) if damping else A

    def truth() -> Tensor:
        matrix = _dense(problem, kind)
        return matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)

    kept, damped = ", graph kept" if keep else "", f" + {damping}" if damping else ""
    return OperatorCase(f"{kind.__name__}{damped} of {problem}{kept}", build, truth)


def _subsampled(problem: str, damping: float) -> OperatorCase:
    def draw(batch_size: int) -> Hessian:
        p = problem_of(problem)
        H = Hessian(p.objective(batch_size), p.theta)
        estimate = Damped(H, damping).sampler.subsampled(DRAWN, torch.Generator().manual_seed(5))
        assert isinstance(estimate, Damped)
        assert isinstance(estimate.base, Hessian)
        return estimate.base

    @cache
    def truth() -> Tensor:
        matrix = problem_of(problem).dense_hessian(ids=draw(3).objective.data.ids)
        return matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)

    return OperatorCase(f"subsampled Hessian of {problem}", lambda b: Damped(draw(b), damping), truth)


def _head(name: str, by_core: bool, damping: float) -> OperatorCase:
    case = next(case for case in HEADS if case.name == name)

    def build(batch_size: int) -> LinearOperator:
        head = LinearHead(case.objective(batch_size), case.theta)
        if by_core:
            head.core()
        return Damped(head, damping) if damping else head

    @cache
    def truth() -> Tensor:
        matrix = case.hessian()
        return matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)

    form, damped = "core" if by_core else "samples", f" + {damping}" if damping else ""
    return OperatorCase(f"LinearHead{damped} of {name}, by its {form}", build, truth)


OPERATORS = [
    _of_problem("ridge", Hessian, False, 0.0),
    _of_problem("ridge", GaussNewton, False, 0.0),
    *(
        _of_problem(problem, kind, keep, damping)
        for problem in ("logistic", "attention")
        for kind in (Hessian, GaussNewton)
        for keep in (False, True)
        for damping in (0.0, 0.3)
    ),
    _subsampled("logistic", 0.3),
    _subsampled("attention", 0.3),
    *(
        _head(name, by_core, damping)
        for name in ("softmax, bias", "softmax, weighted samples", "tokens")
        for by_core in (False, True)
        for damping in (0.0, 0.3)
    ),
]


class Matrix(LinearOperator):
    """A matrix as an operator without a model; its draws are exact, so that LiSSA is a plain Neumann series."""

    def __init__(self, matrix: Tensor, definite: Definite = Definite.UNKNOWN) -> None:
        self.matrix, self.size, self.dtype, self.device = matrix, len(matrix), matrix.dtype, matrix.device
        self.definite = definite

    def matmat(self, V: Tensor) -> Tensor:
        return V @ self.matrix

    @property
    def sampler(self) -> BatchSampler:
        return _ExactSampler(self)


class _ExactSampler(BatchSampler):
    def __init__(self, operator: Matrix) -> None:
        self.operator = operator

    def subsampled(self, rows: int, generator: torch.Generator) -> LinearOperator:
        return self.operator

    def draw(self, repeats: int, batch: int, generator: torch.Generator) -> LockstepDraw:
        return _ExactDraw(self.operator.matrix)


class _ExactDraw(LockstepDraw):
    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def matmat(self, V: Tensor) -> Tensor:
        return V @ self.matrix


class Products(LinearOperator):
    """A matrix as an operator that has products only and cannot be sampled."""

    definite = Definite.UNKNOWN

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.size, self.dtype, self.device = matrix, len(matrix), matrix.dtype, matrix.device

    def matmat(self, V: Tensor) -> Tensor:
        return V @ self.matrix


class Structured(Matrix):
    """A matrix on `[3, d]` that knows its cost and the Kronecker product of its partial traces."""

    @property
    def structure(self) -> Structure:
        d = self.size // 3
        blocks = self.matrix.view(3, d, 3, d)
        inputs = torch.einsum("iajb,ij->ab", blocks, torch.eye(3, dtype=self.dtype)) / 3
        outputs = torch.einsum("iajb,ab->ij", blocks, torch.eye(d, dtype=self.dtype)) / inputs.trace()
        factors = KroneckerFactors(inputs, outputs, 0.0, lambda V: V.view(-1, 3, d), lambda M: M.flatten(1))
        return Structure(Cost(2.0 * self.size**2, 2.0 * self.size**3, self.size), kronecker=lambda: factors)


def matrix_with(eigenvalues: Tensor, seed: int = 4) -> Tensor:
    """Returns a symmetric matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64)).Q
    return ((Q * eigenvalues) @ Q.T + ((Q * eigenvalues) @ Q.T).T) / 2


@dataclass(frozen=True)
class SolverCase:
    """A solver, the relative residual it must reach on a matrix of condition 8, and the operator that holds it."""

    name: str
    solver: Solver
    residual: float
    stochastic: bool = field(default=False)
    operator: Callable[[Tensor], LinearOperator] = Matrix

    def __str__(self) -> str:
        return self.name


# LiSSA with exact draws contracts by at least 1 - 0.5 / 5 a step: 0.9^300 < 2e-14.
SOLVERS = [
    SolverCase("Cholesky", Cholesky(), 1e-14),
    SolverCase("CG", CG(rtol=1e-12), 1e-12),
    SolverCase("CG, Nystrom of full rank", CG(rtol=1e-12, preconditioner=Nystrom(rank=12)), 1e-12),
    SolverCase("CG, Nystrom of low rank", CG(rtol=1e-12, preconditioner=Nystrom(rank=3, rows=None)), 1e-12),
    SolverCase("CG, Kronecker", CG(rtol=1e-12, preconditioner=Kronecker()), 1e-12, operator=Structured),
    SolverCase("CG, Subsampled", CG(rtol=1e-12, preconditioner=Subsampled(rows=9)), 1e-12),
    SolverCase("Auto, cost unknown", Auto(rtol=1e-12), 1e-12),
    SolverCase("Auto, cost known", Auto(rtol=1e-12), 1e-12, operator=Structured),
    SolverCase("LiSSA, scale given", LiSSA(depth=300, repeats=2, scale=5.0), 1e-13, stochastic=True),
    SolverCase("LiSSA, scale found", LiSSA(depth=300, repeats=2), 1e-13, stochastic=True),
]
