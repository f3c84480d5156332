"""Plain modules and plain data on the command line: from a foreign checkpoint, or all the way to a verdict."""

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from ifloo.attribution import InfluenceEngine
from ifloo.curvature import Hessian
from ifloo.data import MNISTDataModule
from ifloo.models import LogisticRegression
from ifloo.objective import Objective
from ifloo.refit import NewtonFinish, TrainerSettings
from ifloo.solvers import CG
from ifloo.store import influences
from tests.cli.plain_running import LOSSES, MADE, PROJECT, QUIET, from_checkpoint, run
from tests.cli.running import Outcome, contents, done, ifloo


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(MADE, id="in 64 bits"),
        pytest.param(
            (f"--model={PROJECT}.SingleSoftmax", f"--data={PROJECT}.SingleDigits", "--trainer.precision=64-true"),
            id="in 64 bits by the Trainer",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_pipeline_of_a_plain_module_gives_what_the_built_in_one_gives(project, made):
    """Same J, so the same minimum and the same scores; refits confirm them."""
    said = ifloo(
        project,
        "pipeline",
        *(*made, "--trainer.accelerator=cpu"),
        *("--adapt.l2=0.1", "--trainer.max_epochs=1", "--trainer.logger=false", "--attribution.test_ids=[2]"),
        *("--trainer.enable_checkpointing=false", "--trainer.enable_model_summary=false", "--refit.null_refits=2"),
        *("--finish.preconditioner.rank=10", "--refit.top_k=4", "--refit.random=4"),
    )
    assert said.code == 0, said.err
    stored = influences.load(project / "outputs/experiment/influences_test_2.npz")

    data = MNISTDataModule(source="embedded", train_limit=60, test_limit=12)
    model = LogisticRegression(l2_reg=0.1)
    finish = NewtonFinish()
    L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[finish], enable_checkpointing=False, **QUIET).fit(
        model, datamodule=data
    )
    objective = Objective.of(model, data.train_dataloader())
    theta = objective.losses.theta()
    engine = InfluenceEngine(objective, theta, Hessian(objective, theta), CG(rtol=1e-12), 0.1)
    exact = engine.scores(data.test_batch([2])).value[0].numpy()
    # Stored in 32 bits.
    np.testing.assert_allclose(stored.scores, exact, rtol=1e-6, atol=1e-7 * np.abs(exact).max())

    verdict = json.loads((project / "outputs/experiment/verdict.json").read_text())["tests"]["2"]
    assert verdict["n_refits"] >= 6
    assert verdict["worst_grad_norm"] <= 1e-10
    assert verdict["pearson"] > 0.9  # eight refits of 60 images, where the second order in the weight is seen


@pytest.mark.parametrize("losses", [(), (LOSSES,)], ids=["training_step", "function"])
def test_a_checkpoint_of_another_trainer_is_scored(project, losses):
    said = from_checkpoint(project, *losses)
    assert said.code == 0, said.err
    stored = influences.load(project / "outputs/experiment/influences_test_0.npz")
    assert len(stored.scores) == 60
    assert stored.residual <= 1e-8


def test_both_ways_to_the_losses_are_one(project):
    scores = []
    for name, losses in (("step", ()), ("function", (LOSSES,))):
        said = from_checkpoint(project, *losses, f"--output_dir={name}", "--attribution.solver=ifloo.solvers.CG")
        assert said.code == 0, said.err
        scores.append(influences.load(project / name / "influences_test_0.npz").scores)
    # Two solves to 1e-10, stored in 32 bits; what is small by cancellation is known to the size of the largest only.
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6, atol=1e-6 * np.abs(scores[1]).max())


def refused(folder: Path, said: Outcome, message: str) -> None:
    assert (said.code, said.out) == (2, "")
    assert said.err.endswith(f"ifloo: error: {message}\n"), said.err
    assert not (folder / "outputs").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gone.losses", "No module named 'gone'"),
        (f"{PROJECT}.loses", f"module '{PROJECT}' has no attribute 'loses'"),
        (f"{PROJECT}.nothing_to_call", "it is a int"),
        ("losses", "it names no module"),
    ],
)
def test_a_function_that_is_not_there(project, name, why):
    refused(
        project,
        from_checkpoint(project, f"--adapt.sample_losses={name}"),
        f"adapt.sample_losses = {name} is no function that can be called: {why}.\n"
        "  Give it as module.function; modules are looked for in this folder and among what is installed.",
    )


def test_a_function_of_the_wrong_shape(project):
    said = from_checkpoint(project, f"--adapt.sample_losses={PROJECT}.reduced")
    assert said.code == 2
    assert said.err.endswith(
        "ifloo: error: sample_losses must return one loss a sample, shape [16] for a batch of 16; got [].\n"
        "  Leave out the reduction (reduction='none') and sum over everything but the first dimension.\n"
    )


def test_a_step_that_cannot_run_on_one_sample(project):
    said = ifloo(
        project,
        *("influence", f"--model={PROJECT}.Contrastive", f"--data={PROJECT}.Digits", "--trainer.accelerator=cpu"),
        *("--ckpt_path=own.ckpt", "--attribution.damping=0.1"),
    )
    assert said.code == 2
    assert "ifloo: error: J is not what was trained: the gradient of a training step differs by " in said.err
    assert (
        "  the most likely cause: a loss taken across the batch (contrastive, by ranks or pairs), or several terms "
        "with different weights or denominators: state the loss of one sample: " in said.err
    )
    ruled_out = (
        "a branch on self.training or trainer.training, epoch 0 or step 1 in the loss, a sum in place of the mean, "
    )
    assert f"Ruled out: {ruled_out}" in said.err


def test_settings_of_adaptation_for_a_module_that_needs_none(project):
    said = ifloo(
        project,
        *("fit", "--model=LogisticRegression", "--data=MNISTDataModule", "--data.source=embedded", "--adapt.l2=0.1"),
        *("--trainer.accelerator=cpu", "--trainer.max_epochs=1"),
    )
    refused(
        project,
        said,
        "LogisticRegression states its losses and its penalty itself; the settings adapt.* are for modules that do "
        "not.\n  Leave them out.",
    )


def test_both_kinds_of_checkpoint(project):
    refused(
        project,
        from_checkpoint(project, "--checkpoint=base.pth"),
        "--ckpt_path own.ckpt and --checkpoint base.pth both name the base model.\n"
        "  Give --checkpoint for one that `ifloo fit` wrote, --ckpt_path for one that your own Trainer wrote.",
    )


def test_a_checkpoint_that_is_not_there(project):
    (project / "own.ckpt").unlink()
    refused(
        project,
        from_checkpoint(project),
        "There is no checkpoint at own.ckpt.\n  Name one that a Lightning Trainer wrote (--ckpt_path).",
    )


def test_a_file_without_weights(project):
    torch.save({"epoch": 3}, project / "own.ckpt")
    refused(
        project,
        from_checkpoint(project),
        "own.ckpt is no Lightning checkpoint (it has no 'state_dict').\n"
        "  Name one that trainer.save_checkpoint or ModelCheckpoint wrote.",
    )


def test_keys_that_do_not_match(project):
    content = torch.load(project / "own.ckpt", weights_only=True)
    weight = content["state_dict"].pop("linear.weight")
    content["state_dict"] |= {f"layer{k}.weight": weight for k in range(7)}
    torch.save(content, project / "own.ckpt")
    said = from_checkpoint(project)
    assert said.code == 2
    assert said.err.endswith(
        "ifloo: error: The checkpoint own.ckpt is not of this Softmax.\n"
        "  The model has, the checkpoint has not: ['linear.weight']\n"
        "  The checkpoint has, the model has not: ['layer0.weight', 'layer1.weight', 'layer2.weight', "
        "'layer3.weight', 'layer4.weight']\n"
        "  Name the checkpoint of this model with --checkpoint, or run `ifloo fit` with this one.\n"
    )


def test_other_settings_than_those_of_the_checkpoint(project):
    refused(
        project,
        from_checkpoint(project, "--data.train=50"),
        "The checkpoint own.ckpt was fitted with other settings.\n"
        "  data.train: fitted with 60, asked 50\n"
        "  Leave these settings out (they then come from the checkpoint), name another --checkpoint, or fit again "
        "(`ifloo fit` or `ifloo pipeline` with --overwrite).",
    )


def test_nothing_in_a_checkpoint_is_executed(project):
    torch.save({"state_dict": {}, "bad": Path("x")}, project / "own.ckpt")
    before = contents(project)
    said = from_checkpoint(project)
    assert said.code == 2
    assert said.err.startswith("ifloo: error: own.ckpt holds more than plain values and tensors: bad is a pathlib.")
    assert said.err.endswith(
        "  --trust_checkpoint reads it as it is, and so runs code that the file names: give it only for a file whose "
        "origin you trust. Or leave the objects out when you write it: self.save_hyperparameters(ignore=[...]).\n"
    )
    assert contents(project) == before


@pytest.mark.parametrize("wrapped", [False, True], ids=["module", "list"])
def test_a_file_of_a_whole_module_is_no_checkpoint(wrapped, project):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    torch.save([module] if wrapped else module, project / "own.ckpt")
    place = "[0]" if wrapped else "the whole file"
    said = from_checkpoint(project)
    assert said.code == 2
    assert said.err == (
        "ifloo: error: own.ckpt holds more than plain values and tensors: "
        f"{place} is a torch.nn.modules.container.Sequential.\n"
        "  It is no Lightning checkpoint (it has no 'state_dict'): torch.save of a module writes the module itself. "
        "Name a file that trainer.save_checkpoint or ModelCheckpoint wrote.\n"
    )


REFITS = ("--ckpt_path=own.ckpt", "--attribution.damping=0.1", "--attribution.test_ids=[2]", "--refit.top_k=3")
REFITS += ("--refit.random=3", "--refit.null_refits=1", "--refit.removal=zero_weight", "--adapt.l2=0.1")
REFITS += ("--finish.after=always", "--finish.preconditioner.rank=10")
EPOCHS = "--trainer.max_epochs=2"


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "outputs/experiment/manifest.json").read_text())


def test_flags_beside_a_checkpoint_of_another_trainer_are_how_refits_train(project):
    """Said at the scoring or at the refits, once is enough; what was said and what was done are in the manifest."""
    done(run(project, "influence", *REFITS, EPOCHS, "--trainer.gradient_clip_algorithm=VALUE"))
    said = {"max_epochs": 2, "gradient_clip_algorithm": "value"}
    assert manifest(project)["influence"]["recorded"]["recipe"] == said
    scores = contents(project)["outputs/experiment/influences_test_2.npz"]
    done(run(project, "influence", *REFITS))  # says nothing, and changes nothing
    assert manifest(project)["influence"]["recorded"]["recipe"] == said
    done(run(project, "loo", *REFITS))
    assert manifest(project)["loo"]["compared"]["recipe"] == {
        **TrainerSettings(precision="64-true").identity_settings(),
        **said,
    }
    assert contents(project)["outputs/experiment/influences_test_2.npz"] == scores


@pytest.mark.slow
def test_refits_in_another_way_than_was_said_at_the_scoring(project):
    done(run(project, "influence", *REFITS, EPOCHS))
    before = contents(project)
    asked = (*REFITS, "--trainer.max_epochs=3", "--trainer.precision=64")
    said = run(project, "loo", *asked)
    assert said.code == 2
    assert said.err.endswith(
        "ifloo: error: outputs/experiment/manifest.json: other settings were given for refits of the checkpoint "
        "own.ckpt, which does not contain its own, when it was scored.\n"
        "  trainer.max_epochs: then 2, now 3\n"
        "  Leave these settings out (refits then train with the former ones), or give them to `ifloo influence` first: "
        "it keeps the scores that exist.\n"
    ), said.err
    assert contents(project) == before
    done(run(project, "influence", *asked))
    done(run(project, "loo", *REFITS))
    assert (
        manifest(project)["loo"]["compared"]["recipe"]
        == TrainerSettings(max_epochs=3, precision="64-true").identity_settings()
    )


@pytest.mark.slow
def test_a_pipeline_from_a_checkpoint_of_another_trainer_refits_as_flags_say(project):
    done(run(project, "pipeline", *REFITS, EPOCHS))
    refits = contents(project)["outputs/experiment/loo_losses_test_2.jsonl"]
    assert (
        manifest(project)["loo"]["compared"]["recipe"]
        == TrainerSettings(max_epochs=2, precision="64-true").identity_settings()
    )
    done(run(project, "pipeline", *REFITS))
    assert contents(project)["outputs/experiment/loo_losses_test_2.jsonl"] == refits
    before = contents(project)
    said = run(project, "pipeline", *REFITS, "--trainer.max_epochs=1")
    assert said.code == 2
    assert "\n  trainer.max_epochs: then 2, now 1\n" in said.err
    assert contents(project) == before
    done(run(project, "pipeline", *REFITS))  # what was refused is not remembered


@pytest.mark.slow
def test_another_checkpoint_takes_nothing_of_what_was_said_of_the_first(project):
    done(from_checkpoint(project, EPOCHS))
    shutil.copy(project / "own.ckpt", project / "other.ckpt")
    done(run(project, "influence", "--ckpt_path=other.ckpt", "--attribution.damping=0.2", "--overwrite"))
    assert "recipe" not in manifest(project)["influence"]["recorded"]


@pytest.mark.parametrize("part", ["limit_train_batches=0.5", "overfit_batches=2"])
def test_refits_on_part_of_the_data(project, part):
    said = from_checkpoint(project, f"--trainer.{part}")
    assert said.code == 2
    limit, overfit = ("0.5", "None") if "limit" in part else ("None", "2")
    assert said.err == (
        "ifloo: error: Refits train on all the data, as J is over all of it; got limit_train_batches = "
        f"{limit}, overfit_batches = {overfit}.\n  To train on fewer samples limit the data module.\n"
    )
