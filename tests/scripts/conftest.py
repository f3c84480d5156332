"""What makes the original commands a matter of seconds on forty digits."""

from collections.abc import Iterator

import pytest

from ifloo.solvers import Nystrom


@pytest.fixture(autouse=True, scope="module")
def _light_preconditioner() -> Iterator[None]:
    """The scripts have no flag for it, and rank 300 costs more than all else here; a rank changes no result."""
    rank, *others = Nystrom.__init__.__defaults__ or ()
    assert rank == 300
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Nystrom.__init__, "__defaults__", (10, *others))
        yield
