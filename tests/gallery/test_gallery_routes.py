"""Commands on checkpoints of the gallery: three projects by every route, and refits that end in a verdict."""

import json
import os
import subprocess
import sys

import pytest
import torch

from ifloo.stages import AttributionSettings, InfluenceCallback, InfluencePredictor
from ifloo.store import influences
from tests.cli.running import ifloo
from tests.conftest import CHECKOUT, LONG
from tests.gallery.dense import off
from tests.gallery.doubles import doubled_model
from tests.gallery.exhibits import EXHIBITS, IN_32_BITS

IN_FILES = 1e-7
AT = "tests.gallery."
DOUBLE = {"precision": "64-true"}
# How a user names a project on the command line.
NAMED = {
    "classifier": (f"--model={AT}classifier.Net", f"--data={AT}classifier.Data"),
    "composed": (f"--build={AT}composed.make", "--trust_checkpoint=true"),
    "graphs": (f"--model={AT}graphs.Net", f"--data={AT}graphs.Data"),
    "data in the module": (f"--model={AT}own_data.Net",),
    "compiled": (f"--build={AT}composed.make_compiled", "--trust_checkpoint=true"),
    "BERT": (f"--model={AT}language.Bert", f"--data={AT}language.Data"),
    "BERT by LoRA": (f"--model={AT}language.Bert", f"--data={AT}language.Data"),
    "GPT-2": (f"--model={AT}language.Gpt2", f"--data={AT}language.LanguageData"),
    "GPT-2 by LoRA": (f"--model={AT}language.Gpt2", f"--data={AT}language.LanguageData"),
    "tagger": (f"--model={AT}sequences.Tagger", f"--data={AT}sequences.TaggerData"),
    "forecaster": (f"--model={AT}sequences.Forecaster", f"--data={AT}sequences.ForecasterData"),
    "U-Net": (f"--model={AT}images.UNet", f"--data={AT}images.ShapesData"),
    "factorisation": (f"--model={AT}plain.MatrixFactorization", f"--data={AT}plain.Ratings"),
    "two loaders": (f"--model={AT}plain.TwoLoaders", f"--data={AT}plain.TwoLoadersData", "--data_loader=0"),
    "pytorch_lightning": (f"--model={AT}plain.Older", f"--data={AT}plain.OlderData"),
}
EVERY_ROUTE = ("classifier", "composed", "graphs")


def arguments(name, project, *more):
    exhibit = EXHIBITS[name]
    return [
        *NAMED[name],
        *("--ckpt_path=last.ckpt", "--trainer.accelerator=cpu", "--attribution.dtype=float64"),
        f"--attribution.test_ids=[{project.test_ids[0]}]",
        f"--attribution.damping={exhibit.damping}",
        f"--attribution.parameters={json.dumps(list(exhibit.parameters))}",
        *more,
    ]


def assert_files(project, exhibit):
    stored = influences.load(next((project.folder / "outputs").rglob("influences_test_*.npz")))
    truth = project.dense(exhibit.parameters).scores(project.tests()[:1], exhibit.damping)
    assert off(torch.as_tensor(stored.scores)[None], truth) <= max(IN_FILES, exhibit.rounding)


def real_command(folder, *flags):
    """Runs a command as a shell does: in a process of its own, which has imported nothing of the project."""
    run = subprocess.run(
        [sys.executable, "-m", "ifloo", *flags],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def command(name, folder, *flags):
    """Runs a command in this process, unless the project is of `pytorch_lightning`, which a command reads by itself."""
    if name == "pytorch_lightning":
        real_command(folder, *flags)
    else:
        done = ifloo(folder, *flags)
        assert done.code == 0, done.err


@pytest.mark.parametrize("name", EVERY_ROUTE)
def test_every_route_gives_what_plain_autograd_gives(name, tmp_path):
    exhibit = EXHIBITS[name]
    project = exhibit.trained(tmp_path, scored=True)
    dense = project.dense(exhibit.parameters)
    truth = dense.scores(project.tests()[:1], exhibit.damping)

    real_command(tmp_path, "influence", *arguments(name, project))
    assert_files(project, exhibit)

    settings = AttributionSettings(damping=exhibit.damping, parameters=list(exhibit.parameters))
    query = project.tests()[0]
    predictor = InfluencePredictor(doubled_model(project.model), project.loader(), settings, queries=query)
    predictor.build_engine()
    assert off(predictor.engine.scores(query).value, truth) <= exhibit.rounding

    layer = project.dense([f"{exhibit.logits}.*"])
    stored = influences.load(next((tmp_path / "influence").rglob(f"influences_test_{project.test_ids[0]}.npz")))
    by_layer = layer.scores(project.tests()[:1], stored.damping)
    assert off(torch.as_tensor(stored.scores)[None], by_layer) <= IN_32_BITS


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMED if name not in EVERY_ROUTE])
def test_the_command_gives_what_plain_autograd_gives(name, tmp_path):
    project = EXHIBITS[name].trained(tmp_path)
    command(name, tmp_path, "influence", *arguments(name, project))
    assert_files(project, EXHIBITS[name])


UNROLLED = ("--attribution.method.class_path=ifloo.attribution.Unrolled", "--finish.after=never")
# Steps with dropout or batch statistics are not on a fixed J: the scores are a ranking there, and refits judge it.
RANKED = "--attribution.damping=1.0"
RETRAINED = (RANKED, "--finish.after=never")
FEW_REFITS = ("--refit.top_k=2", "--refit.random=2", "--refit.null_refits=2", "--trainer.logger=false")
VERDICTS = {
    "pytorch_lightning": (),  # at a minimum of L-BFGS
    "classifier": UNROLLED,
    "data in the module": RETRAINED,
    "composed": (f"--build={AT}composed.make_stepped", *RETRAINED),
    "graphs": UNROLLED,
    "factorisation": ("--model.n_users=9", "--model.n_items=7", *UNROLLED),
    "two loaders": UNROLLED,
}
SHOWN = ("pytorch_lightning", "factorisation")


def pipeline_flags(name, project, bits):
    return (
        *NAMED[name],
        *("--trainer.accelerator=cpu", *(f"--trainer.{key}={value}" for key, value in bits.items())),
        f"--trainer.max_epochs={EXHIBITS[name].fit.get('max_epochs', 3)}",
        "--trainer.enable_model_summary=false",
        f"--attribution.test_ids=[{project.test_ids[0]}]",
        *(*VERDICTS[name], *FEW_REFITS),
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHOWN else [pytest.mark.slow]) for name in VERDICTS]
)
def test_refits_end_in_a_verdict(name, tmp_path):
    bits = {} if name == "graphs" else DOUBLE  # Lightning does not convert batches of an author's own class
    project = EXHIBITS[name].trained(tmp_path, **bits)
    command(name, tmp_path, "pipeline", *pipeline_flags(name, project, bits))
    verdict = json.loads((tmp_path / "outputs/experiment/verdict.json").read_text())["tests"]
    (measured,) = verdict.values()
    assert measured["n_refits"] >= 3
    if RANKED not in VERDICTS[name]:
        assert measured["pearson"] > 0.5


@pytest.mark.slow
def test_refits_of_a_schedule_that_waits_for_validation_are_refused_by_that_cause(tmp_path):
    """Refits do not validate."""
    project = EXHIBITS["composed"].trained(tmp_path)
    flags = [flag.removesuffix("_stepped") for flag in pipeline_flags("composed", project, {})]
    refused = ifloo(tmp_path, "pipeline", *flags)
    assert refused.code == 2, refused.out + refused.err
    assert "val/loss" in refused.err


def test_a_checkpoint_of_lightning_s_own_command_line_is_scored(tmp_path):
    """It names its classes for itself, and leaves out the backbone."""
    from tests.gallery.classifier import cli

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    settings = [f"--trainer.{name}=false" for name in quiet]
    project = cli("--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--model.learning_rate=0.03", *settings)
    project.datamodule.setup("fit")
    project.trainer.callbacks.append(
        InfluenceCallback(project.datamodule.val_dataloader(), num_queries=1, output_dir=tmp_path / "influence")
    )
    project.trainer.fit(project.model, datamodule=project.datamodule)
    project.trainer.save_checkpoint(tmp_path / "last.ckpt")
    done = ifloo(
        tmp_path,
        "influence",
        *NAMED["classifier"],
        *("--ckpt_path=last.ckpt", "--trainer.accelerator=cpu", "--attribution.damping=1.0"),
        f"--attribution.test_ids=[{project.datamodule.valid.indices[0]}]",
    )
    assert done.code == 0, done.err
    assert len(list((tmp_path / "influence").rglob("influences_test_*.npz"))) == 1
