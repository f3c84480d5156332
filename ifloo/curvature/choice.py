"""H in the form that costs least: known whole where it is that of one linear layer, else by products."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ifloo.curvature.hessian import Hessian
from ifloo.curvature.linear_head import LinearHead
from ifloo.curvature.operator import LinearOperator
from ifloo.errors import InputError
from ifloo.objective.objective import Objective


def head_or_hessian(objective: Objective, theta: Tensor, otherwise: Callable[[str], object]) -> LinearOperator:
    """A `LinearHead` where the parameters of θ are one that can be seen, else the `Hessian`: the same matrix.

    Args:
        objective: J(θ; 1).
        theta: where.
        otherwise: told in a line why there is no head.
    """
    try:
        return LinearHead(objective, theta)
    except InputError as error:
        otherwise(str(error).splitlines()[0])
        return Hessian(objective, theta)
