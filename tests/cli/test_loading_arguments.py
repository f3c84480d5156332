"""Arguments of model and data: given, from the checkpoint, or made by a function."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ifloo.store import influences
from tests.cli import loading_project as project
from tests.cli.running import Outcome, done, ifloo

AT = ("--trainer.accelerator=cpu", "--attribution.test_ids=[0]")
FROM = ("--ckpt_path=c.ckpt", *AT)


def flags(model: str, data: str | None = "Rows") -> tuple[str, ...]:
    return (f"--model={project.NAME}.{model}", *((f"--data={project.NAME}.{data}",) if data else ()))


def scores(folder: Path, outcome: Outcome, results: str = "experiment") -> np.ndarray:
    done(outcome)
    return influences.load(folder / f"outputs/{results}/influences_test_0.npz").scores


@pytest.fixture(scope="module")
def softmax(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Folder of a trained project, and its scores where every argument is given."""
    folder = tmp_path_factory.mktemp("softmax")
    project.fitted(folder, project.Softmax(4, 3, scale=2.0), project.Rows(40))
    arguments = ("--model.width=4", "--model.classes=3", "--model.scale=2.0", "--data.count=40")
    given = ifloo(folder, "influence", *flags("Softmax"), *arguments, *FROM, "--output_dir=outputs/given")
    return folder, scores(folder, given, "given")


def test_required_arguments_come_from_the_checkpoint_and_are_printed(softmax, caplog):
    folder, given = softmax
    filled = ifloo(folder, "influence", *flags("Softmax"), *FROM)
    np.testing.assert_array_equal(scores(folder, filled), given)
    (line,) = [one for one in caplog.messages if one.startswith("arguments from c.ckpt")]
    assert line == ("arguments from c.ckpt: model.width = 4, model.classes = 3, model.scale = 2.0, data.count = 40")


def test_some_may_be_given_and_others_contradict(softmax):
    folder, _ = softmax
    assert ifloo(folder, "influence", *flags("Softmax"), "--model.width=4", *FROM).code == 0
    refused = ifloo(folder, "influence", *flags("Softmax"), "--model.classes=5", *FROM)
    assert refused.code == 2
    assert "model.classes: fitted with 3, asked 5" in refused.err


def test_an_argument_that_is_nowhere_is_asked_for(softmax, tmp_path):
    folder, _ = softmax
    refused = ifloo(folder, "fit", *flags("Softmax"), "--model.width=4", "--trainer.accelerator=cpu")
    assert refused.code == 2
    assert "Softmax: the following arguments are required: classes." in refused.err
    assert "--model.classes=..." in refused.err
    content = torch.load(folder / "c.ckpt", weights_only=True)
    del content["hyper_parameters"]["width"], content["datamodule_hyper_parameters"]
    torch.save(content, tmp_path / "c.ckpt")
    refused = ifloo(tmp_path, "influence", *flags("Softmax"), *FROM)
    assert refused.code == 2
    assert "required: width, and c.ckpt does not hold them" in refused.err
    refused = ifloo(tmp_path, "influence", *flags("Softmax"), "--model.width=4", *FROM)
    assert "Rows: the following arguments are required: count" in refused.err


def test_a_function_makes_module_and_data_for_every_command(softmax, tmp_path):
    build = f"--build={project.NAME}.make"
    fit = (build, "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.logger=false")
    quiet = ("--trainer.enable_checkpointing=false", "--finish.after=never", "--refit.top_k=2", "--refit.random=2")
    done(ifloo(tmp_path, "pipeline", *fit, *quiet, "--attribution.test_ids=[0]", "--refit.null_refits=2"))
    assert json.loads((tmp_path / "outputs/experiment/verdict.json").read_text())["tests"]["0"]["n_refits"] >= 2
    done(ifloo(tmp_path, "doctor", build, "--trainer.accelerator=cpu"))
    alone = f"--build={project.NAME}.make_alone"
    project.fitted(tmp_path, project.WithData(4, 3))
    by_class = ifloo(tmp_path, "influence", *flags("WithData", None), *FROM, "--output_dir=outputs/class")
    by_function = ifloo(tmp_path, "influence", alone, *FROM, "--output_dir=outputs/function")
    np.testing.assert_array_equal(scores(tmp_path, by_class, "class"), scores(tmp_path, by_function, "function"))


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ((f"--build={project.NAME}.make", *flags("Softmax")), "--model and --data would make others"),
        ((f"--build={project.NAME}.make_nothing",), "make_nothing returned NoneType"),
        ((f"--build={project.NAME}.make_with_arguments",), "must need no arguments"),
        ((f"--build={project.NAME}.absent",), "has no attribute 'absent'"),
        ((), "No model is given"),
        (flags("Softmax", None), "Softmax has no train_dataloader"),
        ((*flags("Softmax"), "--data_loader=1"), "Rows.val_dataloader has no loader 1; it gives 0"),
    ],
    ids=["both ways", "nothing returned", "arguments", "no such function", "neither way", "no data", "no such loader"],
)
def test_what_cannot_be_made_is_named(softmax, asked, text):
    refused = ifloo(softmax[0], "influence", *asked, *FROM)
    assert refused.code == 2
    assert text in refused.err


def test_a_fit_and_a_doctor_take_data_within_the_module(tmp_path):
    model = (*flags("WithData", None), "--model.width=4", "--model.classes=3")
    quiet = ("--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.logger=false", "--finish.after=never")
    done(ifloo(tmp_path, "fit", *model, *quiet, "--trainer.enable_checkpointing=false"))
    own = scores(tmp_path, ifloo(tmp_path, "influence", *flags("WithData", None), *AT))
    assert own.shape == (40,)
    examined = ifloo(tmp_path, "doctor", *flags("WithData", None), *AT)
    assert "WithData, WithData, checkpoint" in done(examined).out


def test_a_test_loader_is_chosen_by_its_name(tmp_path):
    project.fitted(tmp_path, project.Softmax(4, 3), project.NamedTests(40))
    several = flags("Softmax", "NamedTests")
    refused = ifloo(tmp_path, "influence", *several, *FROM)
    assert refused.code == 2
    assert "NamedTests.val_dataloader gives 2 loaders (a, b)" in refused.err
    chosen = ifloo(tmp_path, "influence", *several, "--data_loader=b", *FROM)
    one = ifloo(tmp_path, "influence", *flags("Softmax"), *FROM, "--output_dir=outputs/one")
    np.testing.assert_array_equal(scores(tmp_path, chosen), scores(tmp_path, one, "one"))


def test_paths_of_built_in_data_are_not_taken_from_a_checkpoint_from_elsewhere(tmp_path):
    digits = ("--model=ifloo.models.LogisticRegression", "--data=ifloo.data.MNISTDataModule")
    few = ("--data.source=embedded", "--data.train_limit=40", "--data.test_limit=5", "--trainer.accelerator=cpu")
    fit = ("--trainer.max_epochs=1", "--trainer.logger=false", "--finish.preconditioner.rank=5")
    done(ifloo(tmp_path, "fit", *digits, *few, *fit, "--data.root=elsewhere", "--checkpoint=c.ckpt"))
    light = (*digits, "--data.source=embedded", "--attribution.corrected=false")
    refused = ifloo(tmp_path, "influence", *light, *FROM)
    assert refused.code == 2
    assert "read data.root = elsewhere" in refused.err
    assert "--data.root=..." in refused.err
    done(ifloo(tmp_path, "influence", *light, *FROM, "--data.root=other"))
    shutil.rmtree(tmp_path / "outputs")
    done(ifloo(tmp_path, "influence", *light, *AT, "--checkpoint=c.ckpt"))
