"""Examples in docstrings run, and each public operator and solver has one that ends in True."""

import doctest
import importlib
import inspect

import pytest

import ifloo.curvature
import ifloo.solvers
from ifloo.curvature import LinearOperator
from ifloo.solvers import Preconditioner, Solver

INTERFACES = {Preconditioner, Solver}  # nothing to run: their subclasses are shown
KINDS = (LinearOperator, Preconditioner, Solver)


def _public(room):
    found = [getattr(room, name) for name in room.__all__]
    return [one for one in found if inspect.isclass(one) and issubclass(one, KINDS) and one not in INTERFACES]


CLASSES = [*_public(ifloo.curvature), *_public(ifloo.solvers)]


def test_all_of_them_are_found():
    names = {one.__name__ for one in CLASSES}
    assert names >= {"LinearOperator", "Hessian", "GaussNewton", "LinearHead", "Damped", "SampleMeanOperator"}
    assert names >= {"CG", "Cholesky", "LiSSA", "Auto", "Nystrom", "Kronecker", "Subsampled"}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_its_example_runs_and_ends_in_true(kind):
    text = inspect.getdoc(kind)
    test = doctest.DocTestParser().get_doctest(
        text, {}, kind.__name__, importlib.import_module(kind.__module__).__file__, 0
    )
    assert test.examples, f"{kind.__name__} shows no example"
    assert test.examples[-1].want == "True\n"
    failures = []
    doctest.DocTestRunner(verbose=False).run(test, out=failures.append)
    assert not failures, "".join(failures)
