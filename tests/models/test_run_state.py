"""The state of a finished fit, and the idle Trainer that answers with it."""

import copy
import io
import pickle
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.data import DataLoader, TensorDataset

from ifloo.errors import InputError
from ifloo.models.run_state import RunState, attached, stand_in_trainer

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Rows(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.arange(30.0).reshape(10, 3)), batch_size=3 // self.trainer.world_size)


class OneCycle(L.LightningModule):
    """A module that reads what it can of its Trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.linear(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Chatty(OneCycle):
    """A step that logs by every way, and whose loss is made of what the Trainer answers."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("loss", 1.0)
        self.log_dict({"a": 1.0})
        self.print("hello")
        self.logger.log_metrics({"x": 0.0}, step=batch_idx)  # type: ignore[union-attr]
        self.logger.experiment.add_scalar("x", 0.0, 1)  # type: ignore[union-attr]
        self.logger.experiment["x"].append(3)  # type: ignore[union-attr]
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        assert self.lr_schedulers().get_last_lr() == [rate]  # type: ignore[union-attr]
        return super().training_step(batch, batch_idx) * (1 + self.current_epoch) + rate * self.global_step


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[L.Trainer, dict[str, Any]]:
    """A finished fit of 3 epochs of 4 batches, two to a step, and its checkpoint."""
    trainer = L.Trainer(max_epochs=3, accumulate_grad_batches=2, enable_checkpointing=False, **QUIET)
    trainer.fit(OneCycle(), datamodule=Rows())
    file = tmp_path_factory.mktemp("fit") / "own.ckpt"
    trainer.save_checkpoint(file)
    return trainer, torch.load(file, weights_only=True)


def test_a_live_trainer_and_its_checkpoint_give_the_same_state(fitted: tuple[L.Trainer, dict[str, Any]]) -> None:
    trainer, content = fitted
    live = RunState.of_trainer(trainer)
    stored = RunState.from_checkpoint(content, {"accumulate_grad_batches": 2})
    assert (live.epoch, live.global_step, live.max_epochs, live.batches) == (2, 6, 3, 4)
    assert (stored.part_of_data, live.part_of_data) == ((None, 0.0, 0), (1.0, 0.0, 0))  # checkpoints hold none
    assert replace(stored, part_of_data=live.part_of_data) == live


def test_settings_take_precedence_and_epochs_that_ran_stand_in_for_missing_ones() -> None:
    state = RunState.from_checkpoint({"epoch": 4, "global_step": 9, "state_dict": {"w": torch.zeros(1).double()}})
    assert (state.epoch, state.max_epochs, state.precision, state.global_step) == (4, 5, "64-true", 9)
    recorded = {"epoch": 4, "global_step": 9, "ifloo": {"recipe": {"max_epochs": 7, "precision": "32-true"}}}
    assert RunState.from_checkpoint(recorded).max_epochs == 7
    assert RunState.from_checkpoint(recorded, {"max_epochs": 20}).max_epochs == 20
    assert RunState.from_checkpoint(recorded).precision == "32-true"


def test_a_checkpoint_within_the_fit_has_the_epoch_that_ran(tmp_path: Path) -> None:
    keep = L.pytorch.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1)
    L.Trainer(max_epochs=2, callbacks=[keep], **QUIET).fit(OneCycle(), datamodule=Rows())
    files = sorted(tmp_path.glob("*.ckpt"))
    assert [RunState.from_checkpoint(torch.load(f, weights_only=True)).epoch for f in files] == [0, 1]


def test_the_stand_in_answers_as_at_the_end_of_the_fit(fitted: tuple[L.Trainer, dict[str, Any]]) -> None:
    trainer, content = fitted
    idle = stand_in_trainer(RunState.from_checkpoint(content, {"accumulate_grad_batches": 2}), Rows())
    model = OneCycle()
    with attached(model, idle):
        assert (model.current_epoch, model.global_step) == (2, 6)
        assert (model.trainer.max_epochs, model.trainer.world_size, model.trainer.is_last_batch) == (3, 1, True)
        assert model.trainer.num_training_batches == trainer.num_training_batches == 4
        assert model.trainer.estimated_stepping_batches == 6
        assert not model.trainer.training
        assert not model.trainer.evaluating
        assert model.trainer.callback_metrics == {}
        assert isinstance(model.trainer.datamodule, Rows)  # type: ignore[attr-defined]
        assert len(model.trainer.train_dataloader) == 4
        assert model.trainer.lightning_module is model
        at_end = trainer.optimizers[0].param_groups[0]
        now = model.trainer.optimizers[0].param_groups[0]
        assert {k: v for k, v in now.items() if k != "params"} == {k: v for k, v in at_end.items() if k != "params"}
        assert model.lr_schedulers().last_epoch == 6  # type: ignore[union-attr]
    assert model._trainer is None


def test_steps_per_epoch_are_counted_on_the_loader_where_the_checkpoint_has_none() -> None:
    state = RunState(max_epochs=5)
    assert stand_in_trainer(state, train_loader=range(7)).estimated_stepping_batches == 35
    assert stand_in_trainer(RunState(max_epochs=5, max_steps=9), train_loader=range(7)).estimated_stepping_batches == 9
    data = Rows()
    assert stand_in_trainer(state, data).estimated_stepping_batches == 20
    assert data.trainer is None


def test_a_step_has_no_side_effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, idle = Chatty(), stand_in_trainer(RunState(epoch=2, global_step=5), train_loader=range(4))
    before = copy.deepcopy(model.state_dict())
    out = io.StringIO()
    with redirect_stdout(out), attached(model, idle):
        loss = model.training_step([torch.ones(1, 3)], 0)
        rate = idle.optimizers[0].param_groups[0]["lr"]
        for one in idle.optimizers:  # a step by hand moves nothing
            one.step()
    expected = model.linear(torch.ones(1, 3)).square().mean() * 3 + 5 * rate
    assert loss.item() == pytest.approx(expected.item())
    assert out.getvalue() == ""
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_step_runs_within_transforms() -> None:
    model, idle = Chatty(), stand_in_trainer(RunState(epoch=1, global_step=5), train_loader=range(4))
    weights = {name: p.detach() for name, p in model.named_parameters()}

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            with attached(self.model, idle):
                return self.model.training_step([x], 0)

    step = Step()

    def loss(w: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(step, {f"model.{k}": v for k, v in w.items()}, (x.unsqueeze(0),))

    x = torch.arange(6.0).reshape(2, 3)
    rows = vmap(grad(loss), (None, 0))(weights, x)["linear.bias"]
    for row, sample in zip(rows, x, strict=True):
        torch.testing.assert_close(row, 2 * model.linear(sample).detach())  # mean of two outputs, two epochs
    _, along = jvp(lambda w: loss(w, x[0]), (weights,), ({k: torch.ones_like(v) for k, v in weights.items()},))
    by_backward = sum(g.sum() for g in grad(loss)(weights, x[0]).values())
    torch.testing.assert_close(along.float(), by_backward)
    assert all(isinstance(p, nn.Parameter) and p.grad is None for p in model.parameters())


def test_trained_parameters_are_recorded_before_a_functional_call() -> None:
    model = OneCycle()
    idle = stand_in_trainer(RunState(), train_loader=range(4), model=model)
    assert idle.optimizers == []  # no module is attached
    with attached(model, idle):
        assert [tuple(p.shape) for p in idle.optimizers[0].param_groups[0]["params"]] == [(2, 3), (2,)]


def test_the_state_of_other_optimizers_is_refused() -> None:
    model = OneCycle()
    saved = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3).state_dict()
    idle = stand_in_trainer(RunState(optimizers=(saved,)), train_loader=range(4))
    with (
        attached(model, idle),
        pytest.raises(InputError, match=r"optimizers than OneCycle\.configure_optimizers"),
    ):
        model.optimizers()


def test_children_are_attached_and_everything_is_restored() -> None:
    class Outer(OneCycle):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([OneCycle()])

    model, idle = Outer(), stand_in_trainer(RunState(epoch=3), train_loader=range(4))
    own = L.Trainer(**QUIET)
    model.trainer = own
    with attached(model, idle):
        assert model.parts[0].current_epoch == 3
        with attached(model, stand_in_trainer(RunState(epoch=8))):
            assert model.current_epoch == 8
        assert model.current_epoch == 3
        assert idle.lightning_module is model
    assert model.trainer == own
    assert model.parts[0]._trainer is None


def test_hooks_that_change_the_module_leave_their_change() -> None:
    class Counting(OneCycle):
        mean = 0.0

    model, idle = Counting(), stand_in_trainer(RunState(epoch=3), train_loader=range(4))
    with attached(model, idle, changing=True):
        model.mean = float(model.current_epoch)
        model.log("mean", model.mean)
    assert model.mean == 3


def test_a_data_module_is_attached_too() -> None:
    data = Rows()
    with attached(data, stand_in_trainer(RunState())):
        assert len(data.train_dataloader()) == 4
    assert data.trainer is None


def test_loaders_within_the_module_are_found() -> None:
    class Whole(OneCycle):
        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.ones(6, 3)), batch_size=2)

    model, idle = Whole(), stand_in_trainer(RunState(max_epochs=2))
    with attached(model, idle):
        assert model.trainer.estimated_stepping_batches == 6
        assert idle.val_dataloaders is None


def test_a_stand_in_is_quick_to_make_and_travels_without_data() -> None:
    stand_in_trainer(RunState())
    begun = time.perf_counter()
    idle = stand_in_trainer(RunState(epoch=2), Rows())
    assert time.perf_counter() - begun < 0.05
    assert pickle.loads(pickle.dumps(idle)).run_state == idle.run_state
    assert copy.deepcopy(idle) is idle


def test_modules_of_pytorch_lightning_are_attached() -> None:
    pl = pytest.importorskip("pytorch_lightning")

    class Net(pl.LightningModule):  # type: ignore[misc, name-defined]
        pass

    net = Net()
    with attached(net, stand_in_trainer(RunState(epoch=4))):
        assert net.current_epoch == 4
        net.log("x", 1.0)
        net.logger.log_metrics({"x": 1.0})
    assert net.current_epoch == 0


class Twice(L.LightningModule):
    """Registers a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.net = nn.Sequential(self.backbone, nn.Linear(2, 1))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_optimizers_of_a_layer_with_two_names_leave_its_weights_in_place() -> None:
    module = Twice()
    before = dict(module.named_parameters())
    with attached(module, stand_in_trainer(RunState())):
        (group,) = module.optimizers().param_groups  # type: ignore[union-attr]  # one optimizer
        assert [p.shape for p in group["params"]] == [p.shape for p in before.values()]
    after = dict(module.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
