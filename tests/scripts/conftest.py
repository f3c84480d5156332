"""Fixture that makes the original commands run in seconds on forty digits."""

from collections.abc import Iterator

import pytest

from ifloo.solvers import Nystrom


@pytest.fixture(autouse=True, scope="module")
def _light_preconditioner() -> Iterator[None]:
    """Lowers the default rank of Nystrom, for which the scripts have no flag: rank 300 dominates the time here.

    The rank of a preconditioner changes no result.
    """
    rank, *others = Nystrom.__init__.__defaults__ or ()
    assert rank == 300
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Nystrom.__init__, "__defaults__", (10, *others))
        yield
