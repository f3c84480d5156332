"""J is what the epochs of a fit descend, by the commands: batches in order, part of the rows, the finish of a fit."""

import json

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler

from ifloo.store import influences
from tests.cli.running import done, ifloo
from tests.objective.expected_shares import of_shuffles
from tests.stages.certificate import modules

HERE = "tests.cli.test_weights_of_epochs"
ROWS = list(range(0, 90, 2))


class InOrder(modules.Data):
    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=40)


class LeftOut(modules.Data):
    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=40, drop_last=True)


class SomeRows(modules.Data):
    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=45, sampler=SubsetRandomSampler(ROWS))


class Full(modules.Data):
    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=90)


class ByLbfgs(modules.ClassWeights):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), max_iter=50, line_search_fn="strong_wolfe")


def weights_in(data):
    """c_i by hand."""
    c = torch.zeros(90, dtype=torch.float64)
    if data is InOrder:
        c[:80], c[80:] = 1 / 3 / 40, 1 / 3 / 10
    elif data is LeftOut:
        c[:80] = 1 / 80
    else:
        c[ROWS] = 1 / 45
    return c


def gradient_of_step(module, x, y):
    return torch.cat([g.flatten() for g in torch.autograd.grad(module.training_step((x, y), 0), module.parameters())])


def dense_scores(module, c, damping):
    """−c_i ∇L_t (H + δI)⁻¹ ∇ℓ_i by dense float64 autograd through the user's own training step on single samples."""
    x, y = modules.Data.dataset.tensors
    theta = list(module.parameters())
    j = sum(c[i] * module.training_step((x[i : i + 1], y[i : i + 1]), 0) for i in range(90))
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(j, theta, create_graph=True)])
    H = [torch.cat([g.flatten() for g in torch.autograd.grad(one, theta, retain_graph=True)]) for one in slope]
    H = torch.stack(H) + damping * torch.eye(len(H), dtype=torch.float64)
    rows = torch.stack([gradient_of_step(module, x[i : i + 1], y[i : i + 1]) for i in range(90)])
    tests = modules.Data().val_dataloader().dataset.tensors
    test = gradient_of_step(module, *[part[3:4] for part in tests])
    return (-c * (rows @ torch.linalg.solve(H, test))).numpy(), float(slope.detach().norm())


def project(data, net="Net"):
    where = HERE if net == "ByLbfgs" else "tests.stages.certificate.modules"
    return f"--model={where}.{net}", f"--data={HERE}.{data.__name__}", "--trainer.accelerator=cpu"


@pytest.mark.parametrize("data", [InOrder, LeftOut, SomeRows])
def test_scores_have_the_weights_of_the_epochs(tmp_path, data):
    L.seed_everything(0, verbose=False)
    module = modules.Net()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.fit(module, train_dataloaders=data().train_dataloader())
    trainer.save_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    more = ("--ckpt_path=own.ckpt", "--attribution.damping=0.1", "--attribution.test_ids=[3]")
    done(ifloo(tmp_path, "influence", *project(data), *more, "--attribution.dtype=float64"))
    c = weights_in(data)
    expected, _ = dense_scores(module, c, 0.1)
    found = influences.load(tmp_path / "outputs/experiment/influences_test_3.npz")
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
    np.testing.assert_array_equal(found.scores == 0, (c == 0).numpy())
    recorded = json.loads((tmp_path / "outputs/experiment/manifest.json").read_text())["influence"]["recorded"]
    assert recorded["objective"]["outcome"] == "weighted"
    assert recorded["objective"]["shares"]["untrained"] == int((c == 0).sum())
    assert recorded["objective"]["shares"]["largest_n_c"] == pytest.approx(float(90 * c.max()), rel=1e-12)


@pytest.mark.parametrize("data", [Full, modules.Data])
def test_a_fit_is_finished_at_the_minimum_of_what_it_trained(tmp_path, data):
    """Class weights: of one batch of all, and in expectation over shuffled batches of 30."""
    net, where = ("ByLbfgs", HERE) if data is Full else ("ClassWeights", modules.__name__)
    fixed = (f"--model={where}.{net}", f"--data={data.__module__}.{data.__name__}", "--trainer.accelerator=cpu")
    done(ifloo(tmp_path, "fit", *fixed, "--trainer.max_epochs=1", "--finish.after=always", "--trainer.precision=64"))
    module = modules.ClassWeights()
    module.load_state_dict(torch.load(tmp_path / "models/experiment_base.pth", weights_only=True)["state_dict"])
    a = modules.CLASS_WEIGHTS[modules.Data.dataset.tensors[1]]
    of_all, shuffled = a / a.sum(), of_shuffles(a, 30)
    c, other = (of_all, shuffled) if data is Full else (shuffled, of_all)
    assert dense_scores(module, c, 0.0)[1] < 1e-9
    assert dense_scores(module, other, 0.0)[1] > 1e-4


def test_the_removal_of_a_row_that_no_epoch_holds_changes_nothing(tmp_path):
    settings = (
        "--finish.after=always",
        "--trainer.precision=64",
        "--trainer.max_epochs=1",
        "--attribution.test_ids=[3]",
    )
    refits = ("--refit.random=12", "--refit.top_k=4", "--refit.null_refits=1")
    done(ifloo(tmp_path, "pipeline", *project(LeftOut), *settings, *refits))
    lines = (tmp_path / "outputs/experiment/loo_losses_test_3.jsonl").read_text().splitlines()
    losses = {row["id"]: row["loss"] for row in map(json.loads, lines)}
    left_out = [i for i in losses if i >= 80]
    assert left_out
    for i in left_out:
        assert losses[i] == pytest.approx(losses[-1], abs=1e-12)
    verdict = json.loads((tmp_path / "outputs/experiment/verdict.json").read_text())["tests"]["3"]
    assert verdict["pearson"] > 0.999
