"""Away from a minimum the doctor names a damping with which the command runs, and without which it fails."""

import re

from tests.cli.running import done, small


def test_the_doctor_names_a_damping_that_works(tmp_path):
    saddle = ("--model=tests.cli.broken.Saddle", "--model.optimizer=sgd", "--model.lr=0.0001")
    done(small(tmp_path, "fit", *saddle))
    command, ids = (*saddle, "--attribution.test_ids=[8]"), "--trainer.logger=false"
    said = done(small(tmp_path, "doctor", *command))
    text = " ".join(said.out.split())
    assert "warning a curvature that is not positive definite: smallest eigenvalue about -" in text
    damping = re.search(r"Give --attribution\.damping (\S+) \(estimated from 100 samples;", text)[1]
    assert small(tmp_path, "influence", *command, ids).code == 1
    done(small(tmp_path, "influence", *command, ids, f"--attribution.damping={damping}"))
    again = done(small(tmp_path, "doctor", *command, f"--attribution.damping={damping}"))
    assert "not positive definite" not in again.out
