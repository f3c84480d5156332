"""Former names of settings on a command line: one plain line on stderr, and the same end as under the new name."""

import os
import re
import subprocess
import sys
import warnings

import pytest

from ifloo.cli.run import _quiet
from ifloo.former_names import FormerNameWarning
from tests.cli.running import CHECKOUT


def loo(folder, *flags):
    """Runs `ifloo loo` where no checkpoint exists, in a process of its own: pytest keeps warnings from stderr."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    model = ("--model=ifloo.models.LogisticRegression", "--data=ifloo.data.MNISTDataModule")
    return subprocess.run(
        [sys.executable, "-m", "ifloo", "loo", *model, *flags],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_former_flag_is_one_plain_line_and_changes_no_exit_code(tmp_path):
    former, present = (loo(tmp_path, f"--attribution.{name}=[]") for name in ("further", "compare_with"))
    assert former.returncode == present.returncode == 2
    assert former.stdout == present.stdout
    line = "The setting attribution.further is now attribution.compare_with.\n"
    assert former.stderr == line + present.stderr
    assert present.stderr.startswith("ifloo: error: There is no checkpoint at models/experiment_base.pth.")


@pytest.mark.slow
def test_a_former_and_a_present_name_together_are_wrong_input(tmp_path):
    (tmp_path / "both.yaml").write_text("attribution: {compare_with: [], further: []}\n")
    on_the_line = loo(tmp_path, "--attribution.further=[]", "--attribution.compare_with=[]")
    in_the_file = loo(tmp_path, "--config=both.yaml")
    for ended in (on_the_line, in_the_file):
        assert ended.returncode == 2
        assert re.search(r"attribution\.further and \S*attribution\.compare_with are both given", ended.stderr)
        assert "Traceback" not in ended.stderr


def test_a_flag_replaces_the_former_key_of_a_file(tmp_path):
    (tmp_path / "former.yaml").write_text("attribution: {further: []}\n")
    ended = loo(tmp_path, "--config=former.yaml", "--attribution.compare_with=[]")
    assert "ifloo: error: There is no checkpoint at models/experiment_base.pth." in ended.stderr


def test_other_warnings_keep_their_form():
    python_form = warnings.formatwarning
    with _quiet():
        plain = warnings.formatwarning(FormerNameWarning("A is now B."), FormerNameWarning, "file.py", 3)
        other = warnings.formatwarning(FutureWarning("A is gone."), FutureWarning, "file.py", 3)
    assert plain == "A is now B.\n"
    assert other == "file.py:3: FutureWarning: A is gone.\n"
    assert warnings.formatwarning is python_form
