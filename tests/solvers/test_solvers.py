"""Every solver under every law."""

import pytest

from tests.cases import SOLVERS
from tests.laws import SOLVER_LAWS


@pytest.mark.parametrize("law", SOLVER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", SOLVERS, ids=str)
def test_law(case, law):
    law(case)
