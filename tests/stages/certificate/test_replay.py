"""The replayed step is the one that the Trainer took: its gradient is read off the weights that a fit changed."""

import copy

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ifloo.errors import InputError
from ifloo.models.run_state import RunState
from ifloo.objective.certificate import Part
from ifloo.stages.certificate.drawn_batches import drawn_batches
from ifloo.stages.certificate.gradient_hooks import GradientHooks
from ifloo.stages.certificate.replay import Replay, ReplaySource
from tests.stages.certificate.modules import (
    ByHand,
    Data,
    HookedAtTheStart,
    HookedWhenBuilt,
    Masked,
    MaskedBeforeStep,
    Moment,
    N,
    Net,
    Normed,
    Smoothed,
    Transferred,
    rows,
)

LR = 0.1


class Whole(Data):
    """All samples in one batch, in order."""

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=N)


class LastStep(L.Callback):
    """Weights and step before the last training step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before, self.step = copy.deepcopy(pl_module.state_dict()), trainer.global_step


def fitted(net, data, **settings):
    last = LastStep()
    trainer = L.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[last],
        log_every_n_steps=1,
        **settings,
    )
    trainer.fit(net, datamodule=data)
    names = [name for name, _ in net.named_parameters()]
    gradient = torch.cat([((last.before[n] - net.state_dict()[n]) / LR).flatten() for n in names])
    net.load_state_dict(last.before)
    state = RunState.of_trainer(trainer)
    return gradient, RunState(**{**vars(state), "global_step": last.step})


def replay_of(net, data, state, ran=False):
    loader = data.train_dataloader()
    drawn = drawn_batches(loader, 1)
    names = tuple(name for name, _ in net.named_parameters())
    return Replay(
        ReplaySource(net, drawn.collate, state, data, loader, names, GradientHooks.of(net), ran)
    ), drawn.samples[0]


@pytest.mark.filterwarnings("ignore:You have overridden `transfer_batch_to_device`")
@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize(
    "net",
    [Net, Moment, Smoothed, Normed, Masked, MaskedBeforeStep, HookedAtTheStart, HookedWhenBuilt, Transferred, ByHand],
)
def test_the_gradient_of_the_last_step_of_a_fit(net, ran):
    torch.manual_seed(0)
    module, data = net(), Whole()
    trained, state = fitted(module, data)
    replay, samples = replay_of(module, data, state, ran)
    assert len(samples) == N
    torch.testing.assert_close(replay.gradient(samples), trained, rtol=0, atol=1e-12 * float(trained.norm()) + 1e-13)


def test_the_gradient_of_a_fit_in_sixteen_bits():
    class Single(Whole):
        dataset = TensorDataset(rows()[0].float(), rows()[1])

    torch.manual_seed(0)
    module, data = Net().float(), Single()
    trained, state = fitted(module, data, precision="bf16-mixed")
    replay, samples = replay_of(module, data, state)
    found, full = replay.gradient(samples), replay.gradient(samples, [Part.PRECISION])
    assert float((found - trained).norm()) < 1e-4 * float(trained.norm())  # differences of float32 weights over 0.1
    assert float((full - trained).norm()) > 1e-3 * float(trained.norm())


def test_parts_are_taken_away_one_by_one():
    torch.manual_seed(0)
    module, data = Masked(), Whole()
    replay, samples = replay_of(module, data, RunState(epoch=3, global_step=4, max_epochs=4))
    assert set(replay.parts) == {Part.TRAINING_FLAG, Part.MOMENT, Part.GRADIENT_HOOKS}
    masked, whole = replay.gradient(samples), replay.gradient(samples, [Part.GRADIENT_HOOKS])
    assert torch.equal(masked[4:], whole[4:])
    assert not masked[:4].any()
    assert whole[:4].all()


def test_the_first_epoch_takes_the_place_of_the_last():
    torch.manual_seed(0)
    module, data = Moment(), Whole()
    replay, samples = replay_of(module, data, RunState(epoch=3, global_step=4, max_epochs=4))
    at_once = replay_of(module, data, RunState())[0]
    assert torch.equal(replay.gradient(samples, [Part.MOMENT]), at_once.gradient(samples))
    assert not torch.equal(replay.gradient(samples), at_once.gradient(samples))


def test_a_failing_step_is_the_users_error():
    class Failing(Net):
        def training_step(self, batch, _):
            return self.missing(batch)

    module, data = Failing(), Whole()
    replay, samples = replay_of(module, data, RunState())
    with pytest.raises(InputError, match="training_step of Failing failed when it was run again on 90 samples"):
        replay.gradient(samples)


def test_batches_are_spread_over_the_epoch_and_each_sample_is_read_once():
    reads = []

    class Counted(torch.utils.data.Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            reads.append(i)
            return torch.zeros(2), i

    loader = DataLoader(Counted(), batch_size=9, shuffle=True)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drawn = drawn_batches(loader, 3, 4)
    assert [len(one) for one in drawn.samples] == [4, 4, 4]
    flat = [row for one in drawn.rows for row in one]
    assert len(set(flat)) == 12
    assert [row for row in reads if reads.count(row) > 1] in ([], [0, 0])  # the first tells the form of the samples
    assert torch.equal(torch.get_rng_state(), before)
    assert [int(y) for _, y in drawn.samples[0]] == list(drawn.rows[0])


def test_long_gradients_keep_the_precision_of_the_weights(monkeypatch):
    """A gradient in float64 would take twice the memory of the weights."""
    monkeypatch.setattr("ifloo.stages.certificate.replay.WIDE", 10)

    class Single(Whole):
        dataset = TensorDataset(rows()[0].float(), rows()[1])

    replay, samples = replay_of(Net().float(), Single(), RunState())
    assert replay.gradient(samples).dtype is torch.float32
    monkeypatch.setattr("ifloo.stages.certificate.replay.WIDE", 15)
    assert replay.gradient(samples).dtype is torch.float64
