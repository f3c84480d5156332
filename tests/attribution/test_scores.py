"""One result type for every method: what it holds, how certificates join, and the constructor it had before."""

import re

import pytest
import torch

from ifloo.attribution import Certificate, MethodScores, Scores
from ifloo.errors import InputError
from ifloo.solvers import Status, status_text

VALUE, IDS = torch.tensor([[1.0, -2.0, 0.0], [0.5, 0.0, 1.0]]), torch.tensor([4, 7, 9])
RESIDUAL = torch.tensor([1e-3, 2e-3])


def certificate(count, **changes):
    fields = {
        "residual": torch.full((count,), 1e-11),
        "undamped_residual": torch.full((count,), 0.5),
        "error_bound": None,
        "repeat_error": None,
        "steps": torch.arange(count),
        "status": (Status.CONVERGED,) * count,
        "curves": (torch.tensor([[1.0, 1e-11]], dtype=torch.float64),) * count,
        "damping": 0.25,
    }
    return Certificate(**fields | changes)


@pytest.mark.parametrize("status", Status, ids=lambda status: status.name)
def test_the_stored_form_of_a_status_reads_as_its_text(status):
    assert status_text(status.name) == status.value


def test_certificates_join_in_order_and_keep_what_all_of_them_have():
    found = Certificate.joined([certificate(2), certificate(3, undamped_residual=None)])
    assert found.steps.tolist() == [0, 1, 0, 1, 2]
    assert found.residual.shape == (5,)
    assert found.undamped_residual is None
    assert found.error_bound is None
    assert (len(found.status), len(found.curves)) == (5, 5)
    assert found.damping == pytest.approx(0.25)
    assert Certificate.joined([certificate(1), certificate(2)]).undamped_residual.tolist() == [0.5] * 3


def test_scores_of_a_method_without_a_solve_have_no_certificate():
    found = Scores(VALUE, IDS, torch.arange(2))
    assert (found.certificate, found.worst_residual) == (None, None)
    assert Scores(VALUE, IDS, torch.arange(2), certificate(2)).worst_residual == pytest.approx(1e-11)


def test_the_former_result_of_a_method_is_scores():
    plain = MethodScores(VALUE, IDS)
    assert isinstance(plain, Scores)
    assert plain.certificate is None
    assert plain.query_ids.tolist() == [0, 1]
    solved = MethodScores(VALUE, IDS, RESIDUAL, 7, "fixed steps", 0.5)
    assert solved.certificate.status == (Status.FIXED_STEPS,) * 2
    assert solved.certificate.steps.tolist() == [7, 7]
    assert solved.certificate.undamped_residual is None
    assert (solved.worst_residual, solved.certificate.damping) == (pytest.approx(2e-3), 0.5)


def test_the_former_result_of_a_method_with_a_status_of_its_own():
    with pytest.raises(InputError, match=re.escape("A method ended with status 'done'; expected one of 'converged', ")):
        MethodScores(VALUE, IDS, RESIDUAL, 7, "done")
