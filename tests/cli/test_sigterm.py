"""SIGTERM, with which Slurm, Kubernetes, systemd and `timeout` end a job, ends a command with 143 and a word."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ifloo.attribution import InfluenceEngine
from ifloo.cli import commands, doctor
from ifloo.cli.run import run
from ifloo.models import LogisticRegression
from ifloo.refit.strategies.chord_module import ChordModule
from ifloo.report import Reporter
from ifloo.stages import InfluencePredictor
from ifloo.termination import Terminated
from tests.cli.running import CHECKOUT, LIGHT, SMALL, call, done, small
from tests.conftest import LONG

WORD = "ifloo: interrupted; the same command goes on from here.\n"
AT_ONCE = 20.0  # seconds on a busy machine; the fits below would take minutes
FITS = {
    "many epochs": (
        f"--config={CHECKOUT / 'configs' / 'multimodal.yaml'}",
        "--trainer.accelerator=cpu",
        "--model.embed_dim=16",
        "--data.train_limit=40",
        "--data.batch_size=20",
        "--trainer.max_epochs=100000",
    ),
    "one long step": (
        f"--config={CHECKOUT / 'configs' / 'mnist.yaml'}",
        "--data.source=embedded",
        "--data.train_limit=4000",
        "--model.l2_reg=1.0e-9",
        "--model.tolerance_grad=1.0e-12",
        *LIGHT,
    ),
}


def wait_for(log: Path, text: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + LONG
    while text not in log.read_text(errors="replace"):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("settings", FITS.values(), ids=FITS)
def test_a_fit_ends_at_once_and_writes_no_checkpoint(tmp_path, settings):
    log, err = tmp_path / "log", tmp_path / "err"
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    # The bar of rich, Lightning's own choice where that is installed, writes nothing to a file before the end.
    bar = "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"
    command = [sys.executable, "-m", "ifloo", "fit", *settings, bar]
    with open(log, "wb") as stdout, open(err, "wb") as stderr:
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=stdout, stderr=stderr)
    try:
        wait_for(log, "Epoch 0:", process)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        assert process.wait(LONG) == 143
        assert time.monotonic() - sent < AT_ONCE
    finally:
        process.kill()
        process.wait()
    assert err.read_text().endswith(f"\n{WORD}")
    assert not re.search(r"Traceback|SIGTERM", err.read_text())
    assert not list(tmp_path.rglob("*.pth"))


def striking(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Has a function of the package receive SIGTERM before it does its work."""
    original = getattr(owner, name)

    def struck(*args, **options):
        signal.raise_signal(signal.SIGTERM)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, struck)


FRESH = ("--output_dir=fresh",)
STRUCK = {
    "in a step of the fit": (LogisticRegression, "training_step", "fit", ("--checkpoint=fresh.pth",)),
    "after the fit": (LogisticRegression, "validation_step", "fit", ("--checkpoint=fresh.pth",)),
    "in a pass over the data": (InfluencePredictor, "predict_step", "influence", FRESH),
    "in the solve": (InfluenceEngine, "directions", "influence", FRESH),
    "in a refit": (ChordModule, "training_step", "loo", ("--refit.random=9", "--refit.replicas=4")),
    "in a refit of its own": (LogisticRegression, "training_step", "loo", ("--refit.random=9", "--refit.replicas=1")),
    "between the stages": (commands, "leave_one_out", "pipeline", ()),
    "in the report": (Reporter, "run", "report", ()),
    "in the doctor": (doctor, "examine", "doctor", ()),
}


@pytest.mark.parametrize(("owner", "name", "command", "more"), STRUCK.values(), ids=STRUCK)
def test_every_stage_ends_so_and_the_same_command_goes_on(copied, monkeypatch, owner, name, command, more):
    with monkeypatch.context() as patch:
        striking(patch, owner, name)
        ended = small(copied, command, *more)
    assert ended.code == 143, ended.err
    assert ended.err.endswith(WORD)
    assert not re.search(r"Traceback|SIGTERM", ended.err)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not [path for path in copied.rglob("*") if path.name.endswith(".tmp")]
    done(small(copied, command, *more))


def test_a_handler_of_the_program_around_is_kept_and_an_ended_fit_is_no_success(tmp_path, monkeypatch):
    """Lightning ends a fit by an exit without a code, whatever that handler does."""
    noted: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    try:
        own = signal.getsignal(signal.SIGTERM)
        striking(monkeypatch, LogisticRegression, "on_train_batch_start")
        ended = small(tmp_path, "fit", "--trainer.max_epochs=9")
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert noted == [signal.SIGTERM]
    assert ended.code == 143, ended.err
    assert ended.err.endswith(WORD)
    assert not list(tmp_path.rglob("*.pth"))


def test_a_command_that_went_on_to_its_end_is_no_success(tmp_path, monkeypatch):
    """Python drops an exception that is raised in a destructor."""

    class Dropping:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: dropped.append(one.exc_type))
    ended = call(lambda arguments: run(arguments, lambda _: Dropping()), tmp_path, ["fit", *SMALL])
    assert dropped == [Terminated]
    assert ended.code == 143, ended.err
    assert ended.err.endswith(WORD)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
