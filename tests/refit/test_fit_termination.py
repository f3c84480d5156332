"""A fit that receives SIGTERM ends in `Terminated`, even if the program has its own handler and the fit goes on."""

import copy
import os
import signal

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ifloo.data import AdaptedData
from ifloo.models import LogisticRegression
from ifloo.refit import NewtonFinish, Refitter, TrainerSettings, fit_base
from ifloo.refit.strategies import ChordReplicas, StackedReplicas
from ifloo.refit.strategies.base import RefitTask
from ifloo.refit.strategies.chord_module import ChordModule
from ifloo.refit.strategies.stackable import _StackableCheck
from ifloo.solvers import Nystrom
from ifloo.termination import Terminated
from tests.refit import trained

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Lightning handles SIGTERM on POSIX systems only")

N, D, C = 30, 4, 3


@pytest.fixture
def received():
    """Signals that the handler of the surrounding program received; at the end the handler must still be in place."""
    numbers: list[int] = []

    def handler(number, _):
        numbers.append(number)

    signal.signal(signal.SIGTERM, handler)
    try:
        yield numbers
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def strike(monkeypatch, owner, name):
    """Lets the process receive SIGTERM before a method of `owner` does its work."""
    work = getattr(owner, name)

    def struck(*args):
        signal.raise_signal(signal.SIGTERM)
        return work(*args)

    monkeypatch.setattr(owner, name, struck)


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(C, (N,), generator=generator), torch.arange(N))


def loader():
    return DataLoader(data(), batch_size=N)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loader()

    test_dataloader = train_dataloader


def model():
    return LogisticRegression(num_features=D, num_classes=C, l2_reg=0.1)


def refitter(module=None, epochs=1):
    start = model if module is None else lambda: copy.deepcopy(module)
    recipe = TrainerSettings(max_epochs=epochs, accelerator="cpu")
    return Refitter(start, loader, recipe, NewtonFinish("always", 1e-12, preconditioner=Nystrom(rank=4)), seed=0)


def one_refit(path):
    refitter(epochs=3).fit()


def chord_refits(path):
    base = refitter().fit().module
    ChordReplicas(refitter(base), 2).fit([RefitTask(), RefitTask()])


def stacked_refits(path):
    StackedReplicas(trained.refitter(lambda: trained.Trained(trained.perceptron())), 2)


def base_fit(path):
    finish = NewtonFinish("always", 1e-12, preconditioner=Nystrom(rank=4))
    fit_base(model(), AdaptedData(Data()), TrainerSettings(accelerator="cpu").trainer(finish), finish, path, {})


STRUCK = {
    "in the Newton steps of a refit": (NewtonFinish, "end_fit", one_refit),
    "before a step of a refit": (LogisticRegression, "on_train_batch_start", one_refit),
    "after chord Newton": (ChordModule, "on_train_end", chord_refits),
    "in the check of stacked replicas": (_StackableCheck, "on_train_batch_start", stacked_refits),
    "in the Newton steps of a base fit": (NewtonFinish, "end_fit", base_fit),
}


@pytest.mark.parametrize(("owner", "name", "fit"), STRUCK.values(), ids=STRUCK)
def test_a_fit_ends_although_the_handler_of_the_program_goes_on(tmp_path, monkeypatch, received, owner, name, fit):
    strike(monkeypatch, owner, name)
    with pytest.raises(Terminated):
        fit(tmp_path / "base.ckpt")
    assert received == [signal.SIGTERM]  # so that no further fit began
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fit", [one_refit, chord_refits, stacked_refits, base_fit])
def test_a_fit_without_a_signal_ends_as_ever(tmp_path, received, fit):
    fit(tmp_path / "base.ckpt")
    assert received == []


def test_a_failure_without_a_signal_stays_what_it_is(monkeypatch, received):
    def fail(*_):
        raise KeyError("a fault")

    monkeypatch.setattr(NewtonFinish, "end_fit", fail)
    with pytest.raises(KeyError, match="a fault"):
        refitter().fit()
