"""The cheapest form of the Hessian: a `LinearHead` for the parameters of one linear layer, or else `Hessian`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ifloo.curvature.hessian import Hessian
from ifloo.curvature.linear_head import LinearHead
from ifloo.curvature.operator import LinearOperator
from ifloo.errors import InputError
from ifloo.objective.objective import Objective


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
