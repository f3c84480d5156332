"""Every file in configs/ is a config of every command: it parses, and its classes can be made."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from ifloo.__main__ import main
from ifloo.cli.lightning_cli import IflooCLI
from ifloo.cli.session import Session
from tests.cli.running import CHECKOUT, call

CONFIGS = sorted((CHECKOUT / "configs").glob("*.yaml"))
LONGEST = 60  # lines of one flat, commented file that a reader takes in at once

FEW_ROWS = ("--data.train_limit=10", "--data.test_limit=5")

# What makes the fit of each config a matter of a second; a new config is one row.
QUICK = {
    "mnist": ("--data.source=embedded", "--data.train_limit=50", "--finish.preconditioner.rank=10"),
    "multimodal": (*FEW_ROWS, "--trainer.max_epochs=1"),
    "multimodal_large": (*FEW_ROWS, "--model.embed_dim=16", "--model.num_heads=2", "--model.num_layers=1"),
}

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


def parsed(folder: Path, command: str, config: Path, more: Sequence[str] = ()) -> Session:
    """The session of a command: the config parsed, its classes made, no work done."""
    sessions: list[Session] = []

    def program(arguments: Sequence[str]) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["ifloo", *arguments])
            IflooCLI(sessions.append)
        return 0

    outcome = call(program, folder, [command, f"--config={config}", "--trainer.accelerator=cpu", *more])
    assert outcome.code == 0, outcome.err
    (session,) = sessions
    return session


def test_there_is_a_row_for_every_config():
    assert [path.stem for path in CONFIGS] == sorted(QUICK)


@every_config
def test_a_config_fits_on_a_screen(config):
    assert len(config.read_text().splitlines()) <= LONGEST


@every_config
@pytest.mark.parametrize("command", ["fit", "pipeline"])
def test_a_config_instantiates_before_a_fit(tmp_path, config, command):
    experiment = parsed(tmp_path, command, config).experiment
    assert experiment.name == config.stem
    assert experiment.base is None
    assert experiment.checkpoint == Path(f"models/{config.stem}_base.pth")


@every_config
def test_a_config_instantiates_after_a_fit(tmp_path, config):
    """The commands that need a checkpoint take what it says, and the config contradicts none of it."""
    quick = QUICK[config.stem]
    outcome = call(main, tmp_path, ["fit", f"--config={config}", "--trainer.accelerator=cpu", *quick])
    assert outcome.code == 0, outcome.err
    for command in ("influence", "loo", "report", "pipeline"):
        experiment = parsed(tmp_path, command, config, quick).experiment
        assert experiment.base is not None
        assert experiment.name == config.stem


@pytest.mark.parametrize(("said", "run"), [((), "flips"), (("--trainer.logger.init_args.name=mine",), "mine")])
def test_a_run_is_named_after_its_experiment(tmp_path, said, run):
    """One folder for the fit and its report, whatever the experiment; a name that is given stays."""
    config = CHECKOUT / "configs" / "mnist.yaml"
    session = parsed(tmp_path, "pipeline", config, ["--experiment=flips", "--data.source=embedded", *said])
    assert Path(session.trainer.logger.log_dir) == Path("lightning_logs") / run
