"""Settings of attribution, and their form in manifests."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ifloo.attribution import Method
from ifloo.curvature import Damped, Hessian, LinearOperator, as_head
from ifloo.errors import InputError
from ifloo.objective import Objective
from ifloo.params import DTYPES
from ifloo.solvers import Auto, Solver
from ifloo.store import JSON

Curvature = Callable[[Objective, Tensor], LinearOperator]


@dataclass(frozen=True)
class AttributionSettings:
    """Test samples to explain, and how training samples are scored.

    Attributes:
        test_ids: Ids of the test samples to explain, or `all`.
        top_k: Number of ids of largest |score| that are written for each test sample.
        curvature: Curvature H in the score: `ifloo.curvature.Hessian`, `LinearHead` or `GaussNewton`; null: the
            Hessian, in the form of a `LinearHead` where the parameters are one linear layer.
        damping: Number δ >= 0 that is added to the diagonal of H, in nats per squared parameter.
        solver: Solver of (H + δI) x = ∇L_t; `Auto` picks CG or Cholesky by cost.
        parameters: Shell-style patterns of the parameters attributed.
        dtype: Precision of the scoring; null: as trained.
        scores_dtype: Precision of the products ∇ℓ_i · v alone, for a linear head; null: float32 for `all`, else
            `dtype`.
        batch_size: Training samples at once.
        query_block: Test samples solved and scored at once; null: as many as fit into memory.
        matrix: Whether scores of all tests are one matrix (`if_scores.npy`), not one file per test.
        topk_only: Whether only the `top_k` scores of each test and their mean are kept (`topk.npz`); for `all`.
        method: Method that replaces the curvature at a minimum, such as `ifloo.attribution.Unrolled`; null: scores by
            `curvature`, `damping` and `solver`.
        compare_with: Further methods to compare with the same refits; their scores go to `methods/<name>/`.
        corrected: Whether removals of the samples to refit are also predicted with leverage (linear heads).
        self_influence: Whether the effect of each training sample on its own loss is also computed
            (`self_influence.npz`): it tends to be large where labels are wrong.
    """

    test_ids: list[int] | Literal["all"] = field(default_factory=lambda: [0])
    top_k: int = 500
    curvature: Curvature | None = None
    damping: float = 0.0
    solver: Solver = field(default_factory=Auto)
    parameters: list[str] = field(default_factory=lambda: ["*"])
    dtype: Literal["float64", "float32"] | None = None
    scores_dtype: Literal["float64", "float32"] | None = None
    batch_size: int = 5000
    query_block: int | None = None
    matrix: bool = False
    topk_only: bool = False
    corrected: bool = False
    self_influence: bool = False
    method: Method | None = None
    compare_with: list[Method] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Checks the settings that no other constructor checks.

        Raises:
            InputError: A count is below 1, damping is negative, there is no test id or one is given twice, or two forms
                of output are requested.
        """
        counts = {"top_k": self.top_k, "batch_size": self.batch_size, "query_block": self.query_block}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise InputError(f"attribution.{name} must be >= 1, got {count}.")
        if self.matrix and self.topk_only:
            raise InputError(
                "attribution.matrix and attribution.topk_only are two forms of the same output; give one of them."
            )
        if (self.matrix or self.topk_only) and self.test_ids != "all":
            raise InputError(
                "attribution.matrix and attribution.topk_only are forms for the scores of all tests; give "
                "--attribution.test_ids all with them."
            )
        if not 0 <= self.damping < float("inf"):
            raise InputError(
                f"attribution.damping must be a finite number >= 0, got {self.damping}.\n"
                "  It is added to the curvature (H + damping·I); 0 gives the influence of the objective as it is."
            )
        if not self.test_ids:
            raise InputError(
                "attribution.test_ids is empty; give the test samples to explain, such as '[0, 8]', or all."
            )
        if self.test_ids != "all" and len(set(self.test_ids)) != len(self.test_ids):
            raise InputError(f"attribution.test_ids holds an id twice: {self.test_ids}.")

        self._check_methods()

    def _check_methods(self) -> None:
        if self.method is not None and (self.test_ids == "all" or self.corrected):
            raise InputError(
                f"attribution.method {self.method.name} scores listed tests, without a correction for leverage; got "
                f"test_ids {self.test_ids}, corrected {self.corrected}.\n"
                "  Give --attribution.test_ids '[0, 8]', or leave attribution.method out."
            )
        names = [one.name for one in self.methods]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(
                f"attribution.method and attribution.compare_with hold {twice[0]} twice.\n"
                "  Each needs a name of its own: leave one out, or give another label."
            )

    @property
    def uses_curvature(self) -> bool:
        """Whether any of the scores depend on second derivatives of the losses."""
        return self.method is None or self.self_influence or any(method.uses_curvature for method in self.methods)

    @property
    def methods(self) -> list[Method]:
        """All methods other than the curvature at a minimum."""
        return [*([self.method] if self.method else []), *self.compare_with]

    @property
    def needs_run(self) -> bool:
        """Whether the fit must be recorded."""
        return any(method.needs_run for method in self.methods)

    @property
    def curvature_name(self) -> str:
        """Class name of the curvature, also behind a partial of its settings from the command line."""
        return _name_of(self.curvature or Hessian)

    @property
    def products_dtype(self) -> Literal["float64", "float32"] | None:
        """Precision of the products ∇ℓ_i · v; None for the precision of the solve."""
        return self.scores_dtype or ("float32" if self.test_ids == "all" else None)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        return DTYPES[self.dtype] if self.dtype else None


def settings_json(value: object) -> JSON:
    """Converts a settings object to JSON: class name and fields, so that manifests show and compare every number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: settings_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [settings_json(v) for v in value]
    if callable(value):
        return _name_of(value)
    if isinstance(value, dict):
        return {str(k): settings_json(v) for k, v in value.items()}
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))  # an address is another one in each run


def _name_of(constructor: Callable[..., object]) -> str:
    """Returns the class name of a constructor, also behind a partial of its settings from the command line."""
    if not isinstance(constructor, functools.partial):
        return getattr(constructor, "__name__", str(constructor))
    classes = [a for a in constructor.args if isinstance(a, type)]
    return classes[-1].__name__ if classes else str(constructor)


def method_name(operator: LinearOperator, solver: Solver, module: nn.Module | None = None) -> str:
    """Describes how scores are computed, in one line, and whether they are those of one layer only."""
    base = operator.base if isinstance(operator, Damped) else operator
    name = type(base).__name__
    if isinstance(operator, Damped):
        name = f"Damped({name}, {operator.damping:g})"
    head = as_head(operator)
    if head is None or module is None or sum(p.numel() for p in module.parameters()) == head.size:
        return f"{name} / {solver}"
    last = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)][-1]
    which = "last layer" if head.layer.name == last else "one layer"
    return f"{name} / {solver}, {which} only ({head.layer.name}), its inputs fixed"
