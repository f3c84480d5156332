"""Plain modules that state their outputs apart from their losses."""

import numpy as np
import pytest

from ifloo.store import influences
from tests.cli.plain_running import LOSSES, PROJECT, from_checkpoint

OUTPUTS = (f"--adapt.outputs={PROJECT}.outputs", f"--adapt.output_losses={PROJECT}.output_losses")


def test_outputs_apart_from_losses_give_gauss_newton_and_classes(project):
    """Whose outputs are linear in the parameters has its Hessian as Gauss-Newton matrix."""
    assert from_checkpoint(project, LOSSES, "--output_dir=hessian").code == 0
    newton = "--attribution.curvature=ifloo.curvature.GaussNewton"
    said = from_checkpoint(project, *OUTPUTS, newton, "--output_dir=gauss_newton")
    assert said.code == 0, said.err
    found, expected = (
        influences.load(project / folder / "influences_test_0.npz").scores for folder in ("gauss_newton", "hessian")
    )
    # Both solved to a relative residual of 1e-10 at a condition number near 100, and stored in 32 bits.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (OUTPUTS[:1], f"got sample_losses None, outputs {PROJECT}.outputs, output_losses None"),
        (OUTPUTS[1:], f"got sample_losses None, outputs None, output_losses {PROJECT}.output_losses"),
        (
            (*OUTPUTS, LOSSES),
            f"got sample_losses {PROJECT}.losses, outputs {PROJECT}.outputs, output_losses {PROJECT}.output_losses",
        ),
    ],
    ids=["no losses", "no outputs", "both"],
)
def test_losses_stated_twice_or_by_half(project, given, said):
    outcome = from_checkpoint(project, *given)
    assert outcome.code == 2
    assert outcome.err == (
        "ifloo: error: The losses of a sample are stated by adapt.sample_losses alone, or by adapt.outputs and "
        f"adapt.output_losses together; {said}.\n  Give one of the two.\n"
    )
