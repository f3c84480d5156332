"""Checkpoints of projects that use Lightning's hooks of loading, scored, refitted and held to their own loss."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ifloo.store import influences
from tests.cli import loading_project as project
from tests.cli.running import Outcome, done, ifloo
from tests.cli.test_loading_arguments import FROM, flags

REFITS = ("--refit.top_k=2", "--refit.random=2", "--refit.null_refits=2", "--trainer.max_epochs=1")


def truth(model: torch.nn.Module) -> np.ndarray:
    """Dense scores of test 0 by plain autograd at the weights that the fit ended with."""
    x, y = project.rows(40, 0)
    test_x, test_y = project.rows(6, 1)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def flat(loss: torch.Tensor, create: bool = False) -> torch.Tensor:
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=create)])

    gradient = flat(model.training_step((x, y), 0), create=True)
    hessian = torch.stack(
        [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(one, parameters, retain_graph=True)])
            for one in gradient
        ]
    )
    rows = torch.stack([flat(model.training_step((x[i : i + 1], y[i : i + 1]), 0)) for i in range(40)])
    test = flat(model.training_step((test_x[:1], test_y[:1]), 0))
    return (-rows @ torch.linalg.solve(hessian, test) / 40).detach().numpy()


def assert_right(folder: Path, outcome: Outcome, model: torch.nn.Module) -> None:
    done(outcome)
    stored = influences.load(folder / "outputs/experiment/influences_test_0.npz")
    expected = truth(model)
    np.testing.assert_allclose(stored.scores, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize(
    "model", [project.Standardised, project.MakesLayersAgain, project.NotStrict, project.LazyLayer]
)
def test_scores_are_those_of_the_module_as_it_was_trained(model, tmp_path):
    torch.manual_seed(3)  # the frozen layer is the same in both
    made = model()
    if model is project.LazyLayer:
        made.lin(torch.zeros(1, 4, dtype=torch.float64))
    project.fitted(tmp_path, made, project.Rows(40))
    torch.manual_seed(3)
    assert_right(tmp_path, ifloo(tmp_path, "influence", *flags(model.__name__), *FROM, "--seed_everything=3"), made)


def test_weights_that_a_hook_renames_are_loaded(tmp_path):
    model = project.fitted(tmp_path, project.Softmax(4, 3), project.Rows(40))
    content = torch.load(tmp_path / "c.ckpt", weights_only=True)
    content["state_dict"] = {k.replace("lin", "old"): v for k, v in content["state_dict"].items()}
    torch.save(content, tmp_path / "c.ckpt")
    assert ifloo(tmp_path, "influence", *flags("Softmax"), *FROM).code == 2
    assert_right(tmp_path, ifloo(tmp_path, "influence", *flags("Renamed"), *FROM), model)


@pytest.mark.parametrize("model", [project.Standardised, project.MakesLayersAgain])
def test_refits_run_with_the_hooks_of_the_module(model, tmp_path):
    """They find the data module at their Trainer, and keep the layers that they start with."""
    project.fitted(tmp_path, model(), project.Rows(40))
    asked = (*flags(model.__name__), *FROM, *REFITS)
    done(ifloo(tmp_path, "influence", *asked))
    done(ifloo(tmp_path, "loo", *asked))
    lines = (tmp_path / "outputs/experiment/loo_losses_test_0.jsonl").read_text().splitlines()
    assert len(lines) >= 3  # the null refit, and each id once


@pytest.mark.filterwarnings("ignore:Attribute 'net' is an instance of")
def test_objects_are_named_with_their_fields(tmp_path):
    project.fitted(tmp_path, project.WithFolder(Path("runs"), nn.Linear(4, 3, dtype=torch.float64)), project.Rows(40))
    refused = ifloo(tmp_path, "influence", *flags("WithFolder"), *FROM)
    assert refused.code == 2
    assert "hyper_parameters.out is a pathlib" in refused.err
    assert "hyper_parameters.net is a torch.nn.modules.linear.Linear" in refused.err
    assert "--trust_checkpoint" in refused.err


@pytest.mark.filterwarnings("ignore:Attribute 'net' is an instance of")
def test_a_trusted_checkpoint_gives_objects_as_arguments(tmp_path):
    layer = nn.Linear(4, 3, dtype=torch.float64)
    model = project.fitted(tmp_path, project.WithFolder(Path("runs"), layer), project.Rows(40))
    trusted = ifloo(tmp_path, "influence", *flags("WithFolder"), *FROM, "--trust_checkpoint")
    assert_right(tmp_path, trusted, model)
    assert "--trust_checkpoint: c.ckpt (sha256 " in trusted.err
    assert "torch.nn.modules.linear.Linear" in trusted.err
    again = ifloo(tmp_path, "influence", *flags("WithFolder"), *FROM, "--trust_checkpoint")
    assert again.code == 0, again.err  # the settings compare equal


def test_a_checkpoint_of_plain_values_needs_no_trust(tmp_path):
    project.fitted(tmp_path, project.Softmax(4, 3), project.Rows(40))
    trusted = ifloo(tmp_path, "influence", *flags("Softmax"), *FROM, "--trust_checkpoint")
    assert "sha256" not in done(trusted).err
