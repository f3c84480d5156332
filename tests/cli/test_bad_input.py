"""Bad input: a clear error, whole, with the right exit code, and nothing that was there is lost."""

import os
from pathlib import Path

import pytest
import torch

from tests.cli.running import CONFIG, contents, ifloo, small

CHECKPOINT = "models/mnist_base.pth"


def rewritten(folder: Path, **changes: object) -> None:
    """The checkpoint with parts of it replaced."""
    content = torch.load(folder / CHECKPOINT, weights_only=True)
    content["state_dict"].update(changes.pop("state_dict", {}))
    torch.save({**content, **changes}, folder / CHECKPOINT)


# Flags and configs.


@pytest.mark.parametrize("flag", ["--attribution.dampin", "--atribution.damping", "--overwrit"])
def test_a_misspelt_flag_is_an_error(experiment, flag):
    before = contents(experiment)
    said = small(experiment, "influence", f"{flag}=1")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        f"tip: For details of accepted options run: ifloo influence --help\nerror: unrecognized arguments: {flag}=1\n"
    )
    assert contents(experiment) == before


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("  removal:", "  remowal:", "Subcommand 'loo' does not accept option 'refit.remowal'"),
        ("experiment:", "experimint:", "Subcommand 'loo' does not accept option 'experimint'"),
    ],
)
def test_a_misspelt_key_of_the_config_is_an_error(experiment, tmp_path, right, wrong, message):
    text = CONFIG.read_text()
    assert text.count(f"\n{right}") == 1
    (tmp_path / "wrong.yaml").write_text(text.replace(f"\n{right}", f"\n{wrong}"))
    said = ifloo(experiment, "loo", f"--config={tmp_path / 'wrong.yaml'}")
    assert (said.code, said.out) == (2, "")
    assert said.err == f"tip: For details of accepted options run: ifloo loo --help\nerror: {message}\n"


def test_a_misspelt_argument_of_a_class_is_an_error(experiment, tmp_path):
    (tmp_path / "wrong.yaml").write_text(CONFIG.read_text().replace("l2_reg", "l2_rag"))
    said = ifloo(experiment, "fit", f"--config={tmp_path / 'wrong.yaml'}")
    assert said.code == 2
    assert "Problem with given class_path 'ifloo.models.LogisticRegression':" in said.err
    assert "Option 'l2_rag' is not accepted" in said.err


def test_a_missing_config_is_an_error(tmp_path):
    said = ifloo(tmp_path, "fit", "--config=nowhere.yaml")
    assert said.code == 2
    assert said.err == (
        "tip: For details of accepted options run: ifloo fit --help\n"
        f"error: Parser key \"config\": File does not exist: '{tmp_path / 'nowhere.yaml'}'\n"
    )


@pytest.mark.parametrize(
    ("command", "flag", "message"),
    [
        (
            "influence",
            "--attribution.damping=-0.1",
            "attribution.damping must be a finite number >= 0, got -0.1.\n"
            "  It is added to the curvature (H + damping·I); 0 gives the influence of the objective as it is.",
        ),
        ("influence", "--attribution.top_k=0", "attribution.top_k must be >= 1, got 0."),
        ("influence", "--attribution.test_ids=[1,1]", "attribution.test_ids holds an id twice: [1, 1]."),
        (
            "influence",
            "--attribution.test_ids=[]",
            "attribution.test_ids is empty; give the test samples to explain, such as '[0, 8]', or all.",
        ),
        ("influence", "--attribution.solver.rtol=-0.1", "Auto needs a tolerance 0 < rtol < 1 (or null), got -0.1."),
        ("loo", "--refit.random=-1", "refit.random must be >= 0, got -1."),
        (
            "loo",
            "--attribution.test_ids=all",
            "Refits and reports need test ids by name, got `all`; give --attribution.test_ids '[0, 8]'.",
        ),
        (
            "pipeline",
            "--attribution.test_ids=all",
            "Refits and reports need test ids by name, got `all`; give --attribution.test_ids '[0, 8]'.",
        ),
        ("fit", "--finish.tolerance=0", "finish.tolerance must be > 0, got 0.0."),
        ("fit", "--model.l2_reg=-1", "l2_reg must be a finite number >= 0, got -1.0."),
        (
            "fit",
            "--data.train_limit=0",
            "train_limit: expected 1 or more, found 0.\n  Give a larger number, or none for all images.",
        ),
    ],
)
def test_a_value_out_of_range_is_an_error(experiment, command, flag, message):
    before = contents(experiment)
    said = small(experiment, command, flag, "--overwrite")  # the value is looked at, not compared
    assert said.code == 2
    assert said.err == f"ifloo: error: {message}\n"
    assert contents(experiment) == before


@pytest.mark.parametrize(
    ("id_", "step"),
    [
        (-1, "Choose another id."),
        (20, "Choose another id, or raise test_limit to 21 or more (it is 20)."),
        (2000, "Choose another id, or take the full files (source: full), which hold ids 0..9999."),
    ],
)
def test_a_test_id_out_of_range_is_an_error(experiment, id_, step):
    before = contents(experiment)
    said = small(experiment, "influence", f"--attribution.test_ids=[0,{id_}]")
    assert said.code == 2
    assert said.err == (
        f"ifloo: error: test id {id_} is out of range: the 20 test images in use have ids 0..19.\n  {step}\n"
    )
    assert contents(experiment) == before


def test_settings_that_contradict_the_checkpoint_are_an_error(experiment):
    before = contents(experiment)
    said = small(
        experiment,
        "influence",
        "--data.train_limit=90",
        "--model.l2_reg=0.1",
        "--seed_everything=3",
        "--trainer.max_epochs=2",
    )
    assert said.code == 2
    assert said.err == (
        "ifloo: error: The checkpoint models/mnist_base.pth was fitted with other settings.\n"
        "  model.l2_reg: fitted with 0.01, asked 0.1\n"
        "  data.train_limit: fitted with 100, asked 90\n"
        "  trainer.max_epochs: fitted with 1, asked 2\n"
        "  seed_everything: fitted with 0, asked 3\n"
        "  Leave these settings out (they then come from the checkpoint), name another --checkpoint, or "
        "fit again (`ifloo fit` or `ifloo pipeline` with --overwrite).\n"
    )
    assert contents(experiment) == before


def test_lbfgs_is_fitted_on_a_full_batch_only(tmp_path):
    said = small(
        tmp_path, "fit", "--data.batch_size=40", "--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=1"
    )
    assert said.code == 2
    assert said.err == (
        "ifloo: error: Optimizer lbfgs minimises one fixed function: it needs the full batch, no accumulation, no "
        "clipping and full precision; got 3 batches an epoch (batch_size < n); accumulate_grad_batches = 2; "
        "gradient_clip_val = 1.\n"
        "  Raise --data.batch_size to the number of training samples and leave the others out, or use "
        "--model.optimizer sgd or adamw.\n"
    )
    assert not (tmp_path / CHECKPOINT).exists()


# The checkpoint.


def test_a_missing_checkpoint_is_an_error(tmp_path):
    for command in ("influence", "loo", "report"):
        said = small(tmp_path, command)
        assert said.code == 2
        assert said.err == (
            "ifloo: error: There is no checkpoint at models/mnist_base.pth.\n"
            "  Run `ifloo fit` first, or name one with --checkpoint.\n"
        )


@pytest.mark.parametrize("command", ["influence", "pipeline"])
@pytest.mark.parametrize(("damage", "reason"), [(lambda b: b"", "EOFError"), (lambda b: b"hello", "KeyError 101")])
def test_a_damaged_checkpoint_is_an_error(copied, command, damage, reason):
    (copied / CHECKPOINT).write_bytes(damage((copied / CHECKPOINT).read_bytes()))
    before = contents(copied)
    said = small(copied, command)
    assert said.code == 2
    assert said.err == (
        f"ifloo: error: models/mnist_base.pth cannot be read as a checkpoint: {reason}.\n"
        "  The file is damaged or holds more than weights and plain values. Run `ifloo fit` again.\n"
    )
    assert contents(copied) == before  # a pipeline does not fit over a file it cannot read


@pytest.mark.parametrize("kept", [100, 5000, 30000])
def test_a_truncated_checkpoint_is_an_error(copied, kept):
    whole = (copied / CHECKPOINT).read_bytes()
    (copied / CHECKPOINT).write_bytes(whole[:kept])
    said = small(copied, "influence")
    assert said.code == 2
    first, second = said.err.splitlines()  # torch's own words differ with the place of the cut
    assert first.startswith("ifloo: error: models/mnist_base.pth cannot be read as a checkpoint: ")
    assert second == "  The file is damaged or holds more than weights and plain values. Run `ifloo fit` again."


class Touch:
    """An object whose unpickling makes a file."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_in_a_checkpoint_is_executed(copied):
    rewritten(copied, extra=Touch())
    said = small(copied, "influence")
    assert said.code == 2
    assert said.err == (
        f"ifloo: error: models/mnist_base.pth holds more than plain values and tensors: extra is a {os.name}.mkdir.\n"
        "  Run `ifloo fit` again.\n"
    )
    assert not (copied / "executed").exists()


def test_a_checkpoint_of_something_else_is_an_error(copied):
    torch.save({"state_dict": {}}, copied / CHECKPOINT)
    said = small(copied, "influence")
    assert said.code == 2
    assert said.err == (
        "ifloo: error: models/mnist_base.pth was not written by `ifloo fit` (it has no section 'ifloo'). "
        "Run `ifloo fit` first.\n"
    )


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("linear.weight", (10, 700), "  Shapes: linear.weight [10, 700] instead of [10, 784]"),
        ("linear.bias", (10,), "  The checkpoint has, the model has not: ['linear.bias']"),
    ],
)
def test_a_checkpoint_of_another_model_is_an_error(copied, name, shape, message):
    rewritten(copied, state_dict={name: torch.zeros(shape, dtype=torch.float64)})
    before = contents(copied)
    said = small(copied, "influence")
    assert said.code == 2
    assert said.err == (
        "ifloo: error: The checkpoint models/mnist_base.pth is not of this LogisticRegression (it was fitted as "
        f"ifloo.models.logistic.LogisticRegression).\n{message}\n"
        "  Name the checkpoint of this model with --checkpoint, or run `ifloo fit` with this one.\n"
    )
    assert contents(copied) == before
