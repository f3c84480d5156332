"""Failures of a user's project end a command with exit code 2, in the user's words, with the user's file and line."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest

from tests.cli import failing_project
from tests.cli.plain_running import QUIET
from tests.cli.running import ifloo

PROJECT = "failing_project_of_a_user"


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with the project and a checkpoint of its own Trainer."""
    folder = tmp_path_factory.mktemp("failing")
    shutil.copy(failing_project.__file__, folder / f"{PROJECT}.py")
    sys.path.insert(0, str(folder))
    try:
        module = __import__(PROJECT)
        trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **QUIET)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            trainer.fit(module.Net(), datamodule=module.Data())
            trainer.save_checkpoint("own.ckpt", weights_only=True)
        yield folder
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(PROJECT, None)


def place_of(name: str) -> tuple[str, str, str]:
    """Returns what fails in a class, in which words, and where: the comment in the line of the project says it."""
    lines = Path(failing_project.__file__).read_text().splitlines()
    found = [(i + 1, line.split("# in ", 1)[1]) for i, line in enumerate(lines) if "# in " in line]
    owner = {"InItem": "Items", "InCollate": "collate"}.get(name, name)
    ((number, text),) = [(i, text) for i, text in found if re.search(rf"\b{owner}:", text.split("Error")[0])]
    what, _, words = text.partition(": ")
    return what, words, f"{PROJECT}.py:{number}"


SCORED = ["InStep", "InProperty", "InForward", "InInit", "InSetup", "InItem", "InCollate"]
CASES = [(command, name) for command in ("influence", "doctor") for name in SCORED]


@pytest.mark.parametrize(("command", "name"), [*CASES, ("fit", "InOptimizer"), ("fit", "InHook"), ("fit", "InItem")])
def test_the_users_own_line_is_named(failing, name, command):
    data = name in ("InSetup", "InItem", "InCollate")
    made = (f"--model={PROJECT}.{'Net' if data else name}", f"--data={PROJECT}.{name if data else 'Data'}")
    folder = f"--output_dir=outputs/{command}_{name}"
    start = ("--trainer.max_epochs=1",) if command == "fit" else ("--ckpt_path=own.ckpt",)
    said = ifloo(failing, command, *made, folder, *start, "--trainer.accelerator=cpu", "--trainer.logger=false")
    what, words, place = place_of(name)
    text = " ".join((said.err + said.out).split())
    assert said.code == 2, text
    assert "Traceback" not in text
    assert re.search(rf"{what} failed\b.*: {re.escape(words)}.* \({re.escape(place)}\)", text), text


def test_an_empty_test_set_is_named_as_such(failing):
    made = (f"--model={PROJECT}.Net", f"--data={PROJECT}.NoTests", "--output_dir=empty", "--ckpt_path=own.ckpt")
    said = ifloo(failing, "influence", *made, "--trainer.accelerator=cpu", "--attribution.damping=0.1")
    assert said.code == 2
    assert "ifloo: error: NoTests.val_dataloader holds no sample.\n" in said.err
