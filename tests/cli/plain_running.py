"""Commands run in the folder of a plain project (the fixture `project`)."""

from pathlib import Path
from typing import Any

from tests.cli.running import Outcome, ifloo

PROJECT = "plain_project_of_a_user"
QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
MADE = (f"--model={PROJECT}.Softmax", f"--data={PROJECT}.Digits", "--trainer.accelerator=cpu")
LOSSES = f"--adapt.sample_losses={PROJECT}.losses"


def run(folder: Path, command: str, *more: str) -> Outcome:
    return ifloo(folder, command, *MADE, *more)


def from_checkpoint(folder: Path, *more: str) -> Outcome:
    return run(folder, "influence", "--ckpt_path=own.ckpt", "--attribution.damping=0.1", *more)
