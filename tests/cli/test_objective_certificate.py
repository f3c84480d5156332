"""What was trained is what is scored, or the command says how far it is: in log, manifest, verdict and report."""

import json
import logging

import lightning as L
import numpy as np
import pytest
import torch

from ifloo.store import influences
from tests.cli.plain_running import QUIET
from tests.cli.running import done, ifloo
from tests.objective.expected_shares import of_shuffles
from tests.stages.certificate import modules

MODULES = "tests.stages.certificate.modules"
SCORES = "outputs/experiment/influences_test_3.npz"
RECORD = "outputs/experiment/manifest.json"


def fitted(folder, net, epochs=4):
    """Writes a checkpoint of the user's own Trainer, and returns the module."""
    L.seed_everything(0, verbose=False)
    module = net()
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, log_every_n_steps=1, **QUIET)
    trainer.fit(module, datamodule=modules.Data())
    trainer.save_checkpoint(folder / "own.ckpt", weights_only=True)
    return module


def influence(folder, name, *more):
    return ifloo(
        folder,
        "influence",
        *(f"--model={MODULES}.{name}", f"--data={MODULES}.Data", "--ckpt_path=own.ckpt", "--attribution.damping=0.1"),
        *("--trainer.accelerator=cpu", "--attribution.test_ids=[3]", "--attribution.dtype=float64", *more),
    )


def objective(folder):
    return json.loads((folder / RECORD).read_text())["influence"]["recorded"]["objective"]


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def test_class_weights_are_part_of_the_scores(tmp_path, caplog):
    """The scores are those of J = Σ c_i ℓ_i by dense float64 autograd through the user's own training step.

    c_i is the mean share in the weight of a shuffled batch of 30, by counting.
    """
    module = fitted(tmp_path, modules.ClassWeights)
    with caplog.at_level(logging.INFO):
        done(influence(tmp_path, "ClassWeights"))
    stored = influences.load(tmp_path / SCORES)

    data, parameters = modules.Data(), list(module.parameters())
    x, y = data.dataset.tensors
    shares = of_shuffles(modules.CLASS_WEIGHTS[y], modules.BATCH)
    alone = [module.training_step((x[i : i + 1], y[i : i + 1]), 0) for i in range(len(y))]
    slope = flat(torch.autograd.grad((shares * torch.stack(alone)).sum(), parameters, create_graph=True))
    H = torch.stack([flat(torch.autograd.grad(one, parameters, retain_graph=True)) for one in slope])
    H += 0.1 * torch.eye(len(H), dtype=H.dtype)

    def gradient(x, y, i):
        return flat(torch.autograd.grad(module.training_step((x[i : i + 1], y[i : i + 1]), 0), parameters))

    test = gradient(*data.val_dataloader().dataset.tensors, 3)
    exact = -shares * (torch.stack([gradient(x, y, i) for i in range(len(y))]) @ torch.linalg.solve(H, test))
    np.testing.assert_allclose(stored.scores, exact.numpy(), rtol=0, atol=1e-7 * float(exact.abs().max()))

    text = stored.definitions
    assert "scores[i] = dL_t/dw_i = -c_i grad L_t . H^-1 grad l_i" in text
    assert "J = sum_i c_i w_i l_i + R" in text
    assert "drop predicts -(scores[i] - n c_i mean(scores))" in text
    assert "weighs its samples by the value of item 1 (0: 1, 1: 5, 2: 2)" in text
    assert "1/n" not in text
    np.testing.assert_allclose(stored.factors / len(y), shares.numpy(), rtol=1e-9)

    record = objective(tmp_path)
    assert record["outcome"] == "weighted"
    assert record["weights"]["values"] == pytest.approx({"0": 1.0, "1": 5.0, "2": 2.0}, rel=1e-10)
    sentence = (
        "a training step weighs its samples by the value of item 1 (0: 1, 1: 5, 2: 2); J has these weights in "
        f"expectation over shuffled batches of 30, n c_i from {90 * shares.min():.3g} to {90 * shares.max():.3g}"
    )
    assert f"objective: {sentence}" in caplog.text
    assert record["text"].startswith(sentence)


def test_an_evaluation_objective_is_stated_on_every_output(tmp_path, caplog):
    fitted(tmp_path, modules.Smoothed)
    done(influence(tmp_path, "Smoothed"))
    record = objective(tmp_path)
    assert record["outcome"] == "evaluation objective"
    assert record["causes"] == ["a branch on self.training or trainer.training"]
    sentence = "scores are of the evaluation-mode objective; the gradient of a training step differs by "
    assert record["text"].startswith(sentence)
    assert sentence in caplog.text
    done(
        ifloo(
            tmp_path,
            "report",
            *(f"--model={MODULES}.Smoothed", f"--data={MODULES}.Data", "--ckpt_path=own.ckpt"),
            *("--attribution.damping=0.1", "--attribution.test_ids=[3]", "--attribution.dtype=float64"),
            "--trainer.accelerator=cpu",
        )
    )
    assert sentence in (tmp_path / "outputs/experiment/report.html").read_text()


def test_what_no_flag_explains_ends_with_exit_code_2_unless_it_is_accepted(tmp_path):
    fitted(tmp_path, modules.Masked)
    refused = influence(tmp_path, "Masked")
    assert refused.code == 2
    assert "J is not what was trained: the gradient of a training step differs by" in refused.err
    assert "gradient masks (on_after_backward)" in refused.err
    assert not (tmp_path / RECORD).exists()
    done(influence(tmp_path, "Masked", "--adapt.accept_objective=true"))
    record = objective(tmp_path)
    assert (record["outcome"], record["accepted"]) == ("unexplained", True)
    assert "accepted by --adapt.accept_objective" in record["text"]


def test_a_head_that_alone_was_trained_is_named_with_its_flag(tmp_path):
    fitted(tmp_path, modules.HeadOnly)
    refused = influence(tmp_path, "HeadOnly")
    assert refused.code == 2
    assert "configure_optimizers trains lin.* alone: give --attribution.parameters \"['lin.*']\"." in refused.err
    done(influence(tmp_path, "HeadOnly", "--attribution.parameters=['lin.*']"))
    assert objective(tmp_path)["outcome"] == "equal"


def test_a_distance_from_a_minimum_names_what_is_ruled_out(tmp_path, caplog):
    fitted(tmp_path, modules.Decayed, epochs=1)
    done(influence(tmp_path, "Decayed"))
    (warning,) = [r.getMessage() for r in caplog.records if "not at a minimum" in r.getMessage()]
    assert "Ruled out: another loss than the one trained (relative difference " in warning
    assert "parameters that no optimizer has" in warning
    assert (
        "Not ruled out: the optimizer adds weight decay 0.0005, which J lacks: give --adapt.l2 0.0005, a fit that "
        "ended early (train longer; `ifloo fit` by LBFGS ends at 1e-10), what a callback of the fit set on the module. "
        "The scores are a ranking at best."
    ) in warning


def test_epoch_and_step_in_the_loss_are_those_of_the_end_of_the_fit(tmp_path):
    """The scores are those of dense float64 autograd with the strength of the last epoch and step."""
    module = fitted(tmp_path, modules.Moment)
    done(influence(tmp_path, "Moment"))
    record = objective(tmp_path)
    assert record["outcome"] == "equal"
    assert record["relative_difference"] < 1e-14
    stored = influences.load(tmp_path / SCORES)

    strength, parameters = min(1.0, 3 / 5) + 12 / 100, list(module.parameters())  # 4 epochs of 3 batches

    def loss(x, y):
        z = module.lin(x)
        return torch.nn.functional.cross_entropy(z, y) + strength * z.square().mean() + module.l2()

    def gradient(x, y):
        return flat(torch.autograd.grad(loss(x, y), parameters, create_graph=True))

    x, y = modules.Data.dataset.tensors
    H = torch.stack([flat(torch.autograd.grad(one, parameters, retain_graph=True)) for one in gradient(x, y)])
    H += 0.1 * torch.eye(len(H), dtype=H.dtype)
    test = [part[3:4] for part in modules.Data().val_dataloader().dataset.tensors]
    rows = torch.stack([gradient(x[i : i + 1], y[i : i + 1]) for i in range(len(y))]).detach()
    exact = -rows @ torch.linalg.solve(H, gradient(*test).detach()) / len(y)
    np.testing.assert_allclose(stored.scores, exact.numpy(), rtol=0, atol=1e-7 * float(exact.abs().max()))


@pytest.mark.filterwarnings("ignore:You have overridden `transfer_batch_to_device`")
def test_transferred_batches_are_those_that_were_trained_on(tmp_path):
    fitted(tmp_path, modules.Transferred)
    done(influence(tmp_path, "Transferred"))
    assert objective(tmp_path)["outcome"] == "equal"
