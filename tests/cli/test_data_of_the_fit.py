"""The data that are scored are those that were trained on: held to the checkpoint, or refused with the reason."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.func import hessian

from ifloo.data import FitRecord
from ifloo.data.fit_record import KEY
from ifloo.objective.seeded_draws import SeededDraws
from ifloo.store import influences
from tests.cli import split_project
from tests.cli.plain_running import QUIET
from tests.cli.running import Outcome, done, ifloo

NAME = "split_project_of_a_user"


class Recording(L.Callback):
    """Writes the record of the fit's data into checkpoints."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        limits = trainer.limit_train_batches, trainer.overfit_batches, trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        record = FitRecord.of(trainer.train_dataloader, {"val": trainer.val_dataloaders}, *limits)
        checkpoint[KEY] = record.record()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copy(split_project.__file__, tmp_path / f"{NAME}.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop(NAME, None)


def fit(data: str, seed: int, *callbacks: L.Callback, **settings: Any) -> tuple[L.LightningModule, Any]:
    """Fits with a Trainer of the user's own and writes own.ckpt; returns the module and the data module."""
    own: ModuleType = __import__(NAME)
    L.seed_everything(seed, verbose=False)
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", enable_checkpointing=False, callbacks=[*callbacks], **QUIET, **settings
    )
    module, datamodule = own.Softmax(), vars(own)[data]()
    trainer.fit(module, datamodule=datamodule)
    trainer.save_checkpoint("own.ckpt", weights_only=False)
    return module, datamodule


def influence(folder: Path, data: str, *more: str, test: int = 0) -> Outcome:
    made = (f"--model={NAME}.Softmax", f"--data={NAME}.{data}", "--trainer.accelerator=cpu")
    return ifloo(folder, "influence", *made, "--ckpt_path=own.ckpt", f"--attribution.test_ids=[{test}]", *more)


def scores(folder: Path, test: int = 0) -> np.ndarray:
    return influences.load(folder / f"outputs/experiment/influences_test_{test}.npz").scores


def exact(module: L.LightningModule, draws: list[tuple[torch.Tensor, torch.Tensor]], test: Any) -> np.ndarray:
    """Scores by dense autograd, where each draw holds all samples and ℓ_i is the mean over the draws."""
    weight, bias = module.linear.weight.detach(), module.linear.bias.detach()
    theta = torch.cat([weight.flatten(), bias])

    def losses(at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = x @ at[:12].reshape(3, 4).T + at[12:]
        return torch.nn.functional.cross_entropy(logits, y, reduction="none") + 0.01 * at.square().sum()

    def mean_losses(at: torch.Tensor) -> torch.Tensor:
        return torch.stack([losses(at, x, y) for x, y in draws]).mean(0)

    curvature = hessian(lambda at: mean_losses(at).mean())(theta)
    gradients = torch.func.jacrev(mean_losses)(theta)
    x, y = test
    query = torch.func.grad(lambda at: losses(at, x[None], y[None]).sum())(theta)
    return (-(gradients @ torch.linalg.solve(curvature, query)) / len(gradients)).numpy()


def rows_of(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return torch.stack(x), torch.stack(y)


def test_a_random_split_that_no_checkpoint_records_is_refused(project):
    fit("Split", 123)
    said = influence(project, "Split")
    assert said.code == 2
    assert said.err.strip().endswith(
        "Split: set-up draws the split at random: two set-ups with different seeds give other training samples.\n"
        "  Give the seed of the fit (--seed_everything), or a generator in random_split. "
        "A fit with InfluenceCallback, or by `ifloo fit`, records its split."
    )
    assert not (project / "outputs").exists()


def test_a_random_split_within_a_function_that_builds_the_data_is_refused(project):
    fit("Split", 123)
    said = ifloo(project, "influence", f"--build={NAME}.make", "--ckpt_path=own.ckpt", "--attribution.test_ids=[0]")
    assert said.code == 2
    assert "Whole: set-up draws the split at random" in said.err


def test_the_seed_that_a_user_gives_is_taken_as_that_of_the_split(project, caplog):
    module, data = fit("Split", 123)
    test = data.val.indices[0]  # an id is the row of the user's own dataset
    done(influence(project, "Split", "--seed_everything=123", test=test))
    np.testing.assert_allclose(
        scores(project, test), exact(module, [rows_of(data.train)], data.val[0]), rtol=1e-5, atol=1e-8
    )
    given = "the split is drawn at random, by --seed_everything 123 as given"
    (line,) = [one for one in caplog.records if given in one.getMessage()]
    assert line.levelname == "WARNING"
    assert "only if the fit had this seed and drew the same random numbers before its split" in line.getMessage()


def test_another_split_is_the_first_cause_of_a_distance_from_a_minimum(project, caplog):
    """Another order of model and data is as another seed: the same seed then draws another split."""
    fit("Split", 123)
    done(influence(project, "Split", "--seed_everything=7", test=48))
    (warning,) = [text for text in caplog.messages if "the checkpoint is not at a minimum" in text]
    assert "Not ruled out: another split than that of the fit, " in warning


@pytest.mark.parametrize("more", [(), ("--seed_everything=7",)])
def test_the_rows_that_a_checkpoint_records_are_scored(project, more):
    module, data = fit("Split", 123, Recording())
    test = data.val.indices[0]  # an id is the row of the user's own dataset
    done(influence(project, "Split", *more, test=test))
    # Stored in 32 bits.
    expected = exact(module, [rows_of(data.train)], data.val[0])
    np.testing.assert_allclose(scores(project, test), expected, rtol=1e-5, atol=1e-8)
    stored = influences.load(project / f"outputs/experiment/influences_test_{test}.npz")
    assert stored.train_ids.tolist() == list(data.train.indices)


class RecordingTraining(L.Callback):
    """Writes the record of the training rows alone."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = FitRecord.of(trainer.train_dataloader).record()  # type: ignore[arg-type]


def test_a_random_split_whose_tests_are_not_recorded_is_refused(project):
    _, data = fit("Split", 123, RecordingTraining())
    said = influence(project, "Split")
    assert said.code == 2
    assert "own.ckpt records the rows of the training set and not of the tests; set-up draws the split" in said.err
    said = influence(project, "Split", "--seed_everything=7")
    assert said.code == 2
    assert "samples are among those trained on" in said.err
    test = data.val.indices[0]
    done(influence(project, "Split", "--seed_everything=123", test=test))


def test_a_fit_of_ifloo_records_its_split(project):
    made = (f"--model={NAME}.Softmax", f"--data={NAME}.Split", "--trainer.accelerator=cpu", "--trainer.max_epochs=2")
    quiet = ("--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_model_summary=false")
    done(ifloo(project, "fit", *made, *quiet, "--seed_everything=5"))
    content = torch.load(project / "models/experiment_base.pth", weights_only=True)
    record = FitRecord.read(content)
    assert record is not None
    assert (record.n, record.behind) == (60, (("Rows", 80),))
    assert sorted([*record.subsets[0].tolist(), *record.evaluation["val"][0].tolist()]) == list(range(80))
    for test in record.evaluation["val"][0].tolist()[:2]:
        said = done(ifloo(project, "influence", *made[:3], f"--attribution.test_ids=[{test}]"))
        assert "|grad J|" not in said.err
        assert f"test {test}" in said.out


def test_other_data_than_the_record_are_refused(project):
    fit("Whole", 0, Recording())
    said = influence(project, "Augmented")
    assert said.code == 2
    assert "The training data are not those the checkpoint own.ckpt was fitted on." in said.err
    said = influence(project, "Split")
    assert said.code == 2
    assert "Split.train_dataloader: the rows of the fit cannot be applied to these data" in said.err


def test_a_fixed_set_without_a_record_is_said_to_be_unverified(project, caplog):
    module, data = fit("Whole", 0)
    done(influence(project, "Whole"))
    assert caplog.text.count("training data: unverified, since own.ckpt holds no record of them") == 1
    np.testing.assert_allclose(scores(project), exact(module, [rows_of(data.train)], data.val[0]), rtol=1e-5, atol=1e-8)


def test_a_weighted_sampler_within_a_batch_sampler_is_refused(project):
    fit("Weighted", 0)
    said = influence(project, "Weighted")
    assert said.code == 2
    assert "The training loader draws with WeightedRandomSampler; J is the mean over every sample once." in said.err
    assert "The fit has another objective, in which some samples count more than others." in said.err


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"limit_train_batches": 0.5}, "draws part of its batches alone (limit_train_batches = 0.5)"),
        ({"overfit_batches": 1}, "draws part of its batches alone (overfit_batches = 1)"),
        ({"reload_dataloaders_every_n_epochs": 1}, "makes its loader again during training"),
    ],
)
def test_a_fit_of_part_of_its_data_is_refused(project, settings, named):
    fit("Batches", 0, Recording(), **settings)
    said = influence(project, "Batches")
    assert said.code == 2
    assert f"The fit {named}" in said.err


def counted(log: Path) -> np.ndarray:
    return np.bincount(np.array(log.read_text().split(), dtype=int), minlength=80)


def test_scores_read_each_training_sample_at_most_twice(project, monkeypatch):
    fit("Whole", 0, Recording())
    monkeypatch.setenv("READS", str(project / "reads.txt"))
    done(influence(project, "Whole", "--attribution.test_ids=[0, 3]"))
    # The 20 test samples are other reads of the same rows.
    reads = counted(project / "reads.txt")
    assert reads[20:].max() <= 2
    assert reads[20:].min() >= 1


def test_a_pipeline_reads_each_training_sample_twice_beside_its_training(project, monkeypatch):
    fit("Whole", 0, Recording())
    monkeypatch.setenv("READS", str(project / "reads.txt"))
    made = (f"--model={NAME}.Softmax", f"--data={NAME}.Whole", "--trainer.accelerator=cpu", "--ckpt_path=own.ckpt")
    refits = ("--refit.top_k=2", "--refit.random=2", "--refit.null_refits=1", "--trainer.max_epochs=3")
    done(ifloo(project, "pipeline", *made, *refits, "--attribution.test_ids=[0]", "--attribution.top_k=2"))
    reads = counted(project / "reads.txt")
    trained = 6 * 3  # four removals and two null refits of three epochs
    assert reads[20:].max() <= 2 + trained


def test_augmented_data_are_scored_on_one_draw_a_sample(project, caplog):
    fit("Augmented", 0, Recording())
    done(influence(project, "Augmented", "--attribution.damping=0.1"))
    assert caplog.text.count("two reads of training sample") == 1
    first = scores(project)
    shutil.rmtree(project / "outputs")
    done(influence(project, "Augmented", "--attribution.damping=0.1", "--seed_everything=9"))
    assert np.array_equal(scores(project), first)


def drawn(dataset: Any, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
    return rows_of(SeededDraws(dataset, draw))


@pytest.mark.parametrize("draws", [1, 3])
def test_the_loss_of_an_augmented_sample_is_the_mean_over_its_draws(project, draws):
    module, data = fit("Augmented", 0)
    done(influence(project, "Augmented", f"--adapt.draws={draws}"))
    expected = exact(module, [drawn(data.train, k) for k in range(draws)], data.val[0])
    # Stored in 32 bits.
    np.testing.assert_allclose(scores(project), expected, rtol=1e-5, atol=1e-8)


def test_a_fit_by_ifloo_on_augmented_data_ends_at_the_minimum_that_is_scored(project):
    made = (f"--model={NAME}.Softmax", f"--data={NAME}.Augmented", "--trainer.accelerator=cpu")
    quiet = (
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_model_summary=false",
        "--trainer.max_epochs=2",
    )
    draws = ("--adapt.draws=2", "--attribution.test_ids=[0]")
    refits = ("--refit.top_k=2", "--refit.random=2", "--refit.null_refits=1", "--refit.init=warm")
    said = done(ifloo(project, "pipeline", *made, *quiet, *draws, *refits, "--finish.after=always"))
    verdict = json.loads((project / "outputs/experiment/verdict.json").read_text())["tests"]["0"]
    assert "not at a minimum" not in said.err
    assert verdict["worst_grad_norm"] <= 1e-9
    assert verdict["pearson"] > 0.99


def test_scores_of_other_draws_are_not_mixed(project):
    fit("Augmented", 0)
    done(influence(project, "Augmented"))
    said = influence(project, "Augmented", "--adapt.draws=2")
    assert said.code == 2
    assert "draws" in said.err
