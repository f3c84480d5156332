"""What a fit must be that `NewtonFinish` ends: one loader, and a module that knows the weights of its samples."""

import copy
import pickle

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.models import SampleLossModule
from ifloo.refit import NewtonFinish, Refitter, TrainerSettings, fit_base

ROWS = [{"x": torch.ones(2, dtype=torch.float64), "idx": i} for i in range(4)]


class Squares(SampleLossModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def sample_losses(self, batch):
        first = batch[0] if isinstance(batch, list) else batch
        return (first["x"] @ self.weight - 1).square()

    def penalty(self):
        return self.weight.square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Plain(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def training_step(self, batch, _):
        return (batch["x"] @ self.weight - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(module, loaders):
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[NewtonFinish("never")], **settings)
    trainer.fit(module, loaders)
    return trainer


def test_several_loaders():
    with pytest.raises(InputError) as caught:
        fitted(Squares(), [DataLoader(ROWS), DataLoader(ROWS)])
    assert str(caught.value) == (
        "J runs over the samples of one DataLoader; this fit has a list.\n"
        "  Return one torch.utils.data.DataLoader (torch.utils.data.ConcatDataset joins datasets)."
    )


def test_a_plain_module():
    with pytest.raises(InputError) as caught:
        fitted(Plain(), DataLoader(ROWS))
    assert str(caught.value) == (
        "A fit is finished on a SampleLossModule, which knows the weights of its samples; got a Plain.\n"
        "  Wrap it: ifloo.models.Adapted(module)."
    )


def test_settings_travel_without_what_was_made_of_the_data():
    finish = NewtonFinish("always", 1e-7, 9, keep_graph=False, inner_dtype="float32", batch_size=7)
    module = Squares()
    finish.prepare(module, DataLoader(ROWS))
    other = pickle.loads(pickle.dumps(finish))
    for name in ("after", "tolerance", "max_steps", "preconditioner", "keep_graph", "inner_dtype", "batch_size"):
        assert getattr(other, name) == getattr(finish, name)
    assert len(pickle.dumps(finish)) == len(pickle.dumps(NewtonFinish("always", 1e-7, 9, None, False, "float32", 7)))


class Patient(NewtonFinish):
    """A finish of the user's own, with another constructor and a setting that ifloo does not know."""

    def __init__(self, patience):
        super().__init__("always", 1e-7)
        self.patience = [patience]


@pytest.mark.parametrize("travel", [lambda finish: pickle.loads(pickle.dumps(finish)), copy.deepcopy])
def test_a_subclass_travels_with_its_own_state_and_without_data(travel):
    finish = Patient(3)
    finish.prepare(Squares(), DataLoader(ROWS))
    other = travel(finish)
    assert type(other) is Patient
    assert (other.patience, other.after, other.tolerance) == ([3], "always", 1e-7)
    assert (other._data, other._inner, other.minimum) == (None, None, None)
    assert finish._data is not None


def refitter(finish):
    return Refitter(Squares, lambda: DataLoader(ROWS), TrainerSettings(accelerator="cpu"), finish, seed=0)


def test_a_hook_that_refits_would_not_call_is_refused():
    kind = type("Logged", (Patient,), {name: lambda *_: None for name in ("on_train_end", "on_fit_start", "setup")})
    with pytest.raises(InputError) as caught:
        refitter(kind(3))
    assert str(caught.value) == (
        "Refits end by `end_fit` of their NewtonFinish and call none of its hooks; Logged overrides setup, "
        "on_fit_start, on_train_end.\n"
        "  Override end_fit(trainer, module), which ends the base fit too, and move other work to a separate callback."
    )


def test_a_hook_outside_a_refit_is_none_of_its_concern():
    refitter(type("Validating", (Patient,), {"on_validation_end": lambda *_: None})(3))


def test_an_end_of_its_own_ends_a_refit():
    def end_fit(self, trainer, module):
        end = NewtonFinish.end_fit(self, trainer, module)
        self.patience.append(end.grad_norm)
        return end

    finish = type("Measuring", (Patient,), {"end_fit": end_fit})(3)
    refit = refitter(finish).fit()
    assert finish.patience == [3, refit.minimum.grad_norm]


def test_a_base_fit_without_a_lightning_data_module(tmp_path):
    finish = NewtonFinish("never")
    trainer = TrainerSettings(accelerator="cpu").trainer(finish)
    before = list(trainer.callbacks)
    with pytest.raises(InputError) as caught:
        fit_base(Squares(), DataLoader(ROWS), trainer, finish, tmp_path / "base.ckpt", {})
    assert str(caught.value) == (
        "fit_base trains on a LightningDataModule, whose settings the checkpoint records; got a DataLoader.\n"
        "  Give a LightningDataModule with the members of ifloo.data.AttributionData, or wrap a plain one: "
        "ifloo.data.AdaptedData(datamodule)."
    )
    assert trainer.callbacks == before
