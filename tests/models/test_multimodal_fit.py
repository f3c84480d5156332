"""The multimodal model under a real Trainer: it learns, it repeats, and its refits stack."""

import warnings

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.models import MultimodalLM
from ifloo.objective import SampleWeights
from ifloo.params import ParamSpace
from ifloo.refit.strategies.base import RefitTask
from tests.models.pictured import SETTINGS, batch, read, samples, tiny, without
from tests.refit.strategies.test_stacked import check
from tests.refit.trained import refitter

# What a picture is called, asked in two ways, and sums of text alone.
ROWS = (
    *(f"{ask}{picture}({name})" for picture, name in zip("ABCD", "0123", strict=True) for ask in "45"),
    *(
        f"{ask}{a}{b}({x}{y})"
        for a, x in zip("ABC", "012", strict=True)
        for b, y in zip("BCD", "123", strict=True)
        for ask in "6"
    ),
    *("7(7)", "70(1)6(2)", "71A(0)"),
)
TRAINED = {"optimizer": "adam", "lr": 0.01, "warmup": 0.25}
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def trainer(**changes):
    return L.Trainer(**QUIET | {"max_epochs": 2} | changes)


def loader(words=ROWS, batch_size=5, shuffle=True):
    return DataLoader(samples(*words), batch_size=batch_size, shuffle=shuffle)


def fit(**changes):
    """Model and trainer of a seeded fit."""
    L.seed_everything(0, verbose=False)
    model, run = MultimodalLM(**SETTINGS | TRAINED | changes), trainer()
    run.fit(model, loader())
    return model, run


def objective(model):
    with torch.no_grad():
        return float(model.sample_losses(batch(*ROWS)).mean() + model.penalty())


def weights(model):
    return ParamSpace.of(model).values_of(model)


def test_there_are_twenty_rows():
    assert len(set(ROWS)) == len(ROWS) == 20


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_fit_lowers_the_objective(optimizer):
    L.seed_everything(0, verbose=False)
    before = objective(MultimodalLM(**SETTINGS))
    model, run = fit(optimizer=optimizer, lr=0.2 if optimizer == "sgd" else 0.01)
    assert run.global_step == 8
    assert objective(model) < before - 0.3


def test_the_rate_follows_the_steps_of_the_fit():
    rates = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer(callbacks=[Watch()]).fit(tiny(**TRAINED), loader())
    assert rates[:2] == pytest.approx([0.005, 0.01])
    assert rates[4] == pytest.approx(0.005)
    assert rates[7] == 0


def test_the_same_seed_gives_the_same_weights():
    (one, _), (other, _) = fit(), fit()
    assert torch.equal(weights(one), weights(other))


def test_a_checkpoint_is_read_without_running_code(tmp_path):
    model, run = fit(image_size=[8, 8], tied_head=True)
    run.save_checkpoint(tmp_path / "base.ckpt")
    found = torch.load(tmp_path / "base.ckpt", weights_only=True)
    assert found["hyper_parameters"] == dict(model.hparams)
    assert found["hyper_parameters"]["image_size"] == [8, 8]
    assert found["hyper_parameters"] | SETTINGS | TRAINED | {"image_size": [8, 8]} == found["hyper_parameters"]
    again = MultimodalLM.load_from_checkpoint(tmp_path / "base.ckpt", weights_only=True)
    assert torch.equal(weights(again), weights(model))
    assert again.head.weight is again.tokens.weight


def test_evaluation_counts_answers_that_are_right_throughout():
    """Each row counts once, in batches of unequal size: of all words of one and two tokens one of each is right."""
    model = tiny(seed=2)
    words = [f"0A({first}{second}" for first in range(8) for second in ("", *range(8))]
    with torch.no_grad():
        said = model.outputs(without(batch(*words))).argmax(-1)
        loss = float(model.sample_losses(batch(*words)).mean())
    right = 0
    for row, word in zip(said.tolist(), words, strict=True):
        right += all(row[k - 1] == label for k, label in enumerate(read(word)[1]) if label >= 0)
    assert right == 2
    share = right / len(words)
    for stage, run in (("val", trainer().validate), ("test", trainer().test)):
        (found,) = run(model, loader(words, shuffle=False), verbose=False)
        assert found == {f"{stage}/exact_match": pytest.approx(share), f"{stage}/loss": pytest.approx(loss, rel=1e-6)}


def test_decoupled_decay_is_no_part_of_the_objective():
    model = tiny(optimizer="adamw", weight_decay=0.02)
    assert model.decoupled_decay == pytest.approx(0.02)
    assert tiny().decoupled_decay == 0
    assert torch.equal(model.penalty(), tiny().penalty())


def test_decoupled_decay_needs_recorded_steps():
    settings = {**TRAINED, "optimizer": "adamw", "weight_decay": 0.02}
    with pytest.raises(InputError) as caught:
        trainer().fit(tiny(**settings), loader())
    assert str(caught.value) == (
        "The optimizer decays weights (weight_decay = 0.02), which J does not contain: the curvature would be that of "
        "another function than the one trained.\n"
        "  Set weight_decay=0 (torch's AdamW has 0.01 by default) and state the penalty in `penalty`."
    )

    class Recorder(L.Callback):
        records_steps = True

    decayed, plain = tiny(**settings), tiny(**settings | {"weight_decay": 0.0})
    for model in (decayed, plain):
        trainer(callbacks=[Recorder()]).fit(model, loader(shuffle=False))
    assert 1e-4 < float((weights(decayed) - weights(plain)).norm()) < 1


def test_a_fit_without_an_end_is_refused():
    with pytest.raises(InputError, match="this fit has no end"), warnings.catch_warnings():
        trainer(max_epochs=-1).fit(tiny(), loader())


REPLICAS = {
    "adam": TRAINED,
    "adam, tied": {**TRAINED, "tied_head": True, "num_layers": 1, "qk_norm": False},
    "momentum": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "warmup": 0.25, "final_lr": 0.1},
}


@pytest.mark.parametrize("settings", REPLICAS.values(), ids=REPLICAS)
def test_replicas_end_where_refits_one_by_one_do(settings):
    """Cold starts, shuffled batches of 7, a schedule over all steps; one weight zero each."""

    def made():
        return MultimodalLM(**SETTINGS | settings)

    how = refitter(made, shuffle=True, data=samples(*ROWS), init="cold", after="never", max_epochs=2)
    removed = (SampleWeights.removing([i], "zero_weight", len(ROWS)) for i in (0, 8, 17, 19))
    check(how, [RefitTask(), *map(RefitTask, removed)])
