"""Statistics where there are rows enough for any."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ifloo.agreement import Agreement, agreement

FEWEST = 3  # rows below which a group has no statistics


def agreed(
    predicted: NDArray[np.float64],
    actual: NDArray[np.float64],
    noise_floor: float = 0.0,
    chosen: NDArray[np.bool_] | None = None,
) -> Agreement | None:
    """Statistics of the rows chosen that have a prediction (NaN: none); None where too few of them vary.

    Args:
        predicted: `[r]`.
        actual: `[r]`, in the same unit.
        noise_floor: of `actual`.
        chosen: `[r]`; None for all.
    """
    rows = np.isfinite(predicted) & (True if chosen is None else chosen)
    x, y = predicted[rows], actual[rows]
    if len(x) < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return agreement(x, y, noise_floor=noise_floor)
