"""Weights, hooks and state that a checkpoint hands back to module and data module."""

import functools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from ifloo.data import AdaptedData
from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.refit import load_foreign
from ifloo.refit.checkpoint_objects import described, imports_of, object_fields, trust_notice


class Plain(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 2)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.lin(batch[0]).square().mean()


class Frozen(Plain):
    def __init__(self, trained: bool = False) -> None:
        super().__init__()
        self.strict_loading = False
        self.base = nn.Linear(3, 2).requires_grad_(trained)


class Seeing(Plain):
    seen: dict[str, Any] | None = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen = {**checkpoint, "at epoch": self.current_epoch}


class Lazy(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.LazyLinear(2)


def written(folder: Path, **content: Any) -> Path:
    state = {"lin.weight": torch.ones(2, 3), "lin.bias": torch.zeros(2)}
    torch.save({"state_dict": state, "epoch": 4, "global_step": 9, **content}, folder / "c.ckpt")
    return folder / "c.ckpt"


def restored(path: Path, model: L.LightningModule, **settings: Any) -> L.LightningModule:
    load_foreign(path, 0, settings).restore(Adapted(model))
    return model


def test_a_hook_sees_the_whole_checkpoint_and_the_run(tmp_path):
    model = restored(written(tmp_path, scaler=[1.0, 2.0]), Seeing())
    assert model.seen["scaler"] == [1.0, 2.0]
    assert model.seen["at epoch"] == 4
    assert model._trainer is None
    assert torch.equal(model.lin.weight, torch.ones(2, 3))


def test_frozen_layers_may_be_left_out_where_loading_is_not_strict(tmp_path):
    model = Frozen()
    before = model.base.weight.clone()
    restored(written(tmp_path), model)
    assert torch.equal(model.lin.weight, torch.ones(2, 3))
    assert torch.equal(model.base.weight, before)


@pytest.mark.parametrize("model", [Frozen(trained=True), Plain()], ids=["trained", "strict"])
def test_other_tensors_are_an_error(model, tmp_path):
    state = {"lin.bias": torch.zeros(2)} if type(model) is Plain else {"lin.weight": torch.ones(2, 3)}
    path = written(tmp_path, state_dict={**state, "more": torch.zeros(1)})
    with pytest.raises(InputError, match=rf"not of this {type(model).__name__}") as refused:
        restored(path, model)
    text = str(refused.value)
    if type(model) is Plain:
        assert "The model has, the checkpoint has not: ['lin.weight']\n" in text
        assert "The checkpoint has, the model has not: ['more']" in text
    else:
        assert "['base.bias', 'base.weight', 'lin.bias'] (trained; only what is frozen may be left out)" in text


def test_a_shape_that_differs_is_an_error_in_every_mode(tmp_path):
    path = written(tmp_path, state_dict={"lin.weight": torch.ones(2, 5), "lin.bias": torch.zeros(2)})
    for model in (Plain(), Frozen()):
        with pytest.raises(InputError, match=r"lin\.weight \[2, 5\] instead of \[2, 3\]"):
            restored(path, model)


def test_a_lazy_layer_takes_its_shape_from_the_checkpoint(tmp_path):
    model = restored(written(tmp_path), Lazy())
    assert torch.equal(model.lin.weight, torch.ones(2, 3))


def test_a_data_module_gets_back_its_state(tmp_path):
    class Stateful(L.LightningDataModule):
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.seed = state_dict["seed"]

    data = Stateful()
    load_foreign(written(tmp_path, **{Stateful.__qualname__: {"seed": 5}}), 0, {}).restore_data(AdaptedData(data))
    assert data.seed == 5


def test_the_run_has_the_settings_that_are_given(tmp_path):
    assert load_foreign(written(tmp_path), 0, {}).run_state.max_epochs == 5
    assert load_foreign(written(tmp_path), 0, {"max_epochs": 7}).run_state.max_epochs == 7


class Touchy:
    """Writes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_objects_are_found_without_running_what_the_file_names(tmp_path):
    held = {
        "out": Path("runs"),
        "optimizer": functools.partial(torch.optim.SGD, lr=0.1),
        "kind": torch.optim.Adam,
        "nets": [nn.Linear(1, 1), {"touch": Touchy(tmp_path / "touched")}],
        "rate": 0.1,
        "size": torch.Size([1]),
    }
    path = written(tmp_path, hyper_parameters=held)
    found = {one.name: one.kind for one in object_fields(path)}
    assert found["hyper_parameters.out"].startswith("pathlib.")
    assert found["hyper_parameters.optimizer"] == "functools.partial"
    assert found["hyper_parameters.kind"] == "torch.optim.adam.Adam"
    assert found["hyper_parameters.nets[0]"] == "torch.nn.modules.linear.Linear"
    assert "hyper_parameters.nets[1].touch" in found
    assert not {"hyper_parameters.rate", "hyper_parameters.size"} & found.keys()
    assert "functools.partial" in imports_of(path)
    with pytest.raises(InputError, match=r"hyper_parameters\.out is a pathlib[\s\S]*--trust_checkpoint"):
        load_foreign(path, 0, {})
    assert not (tmp_path / "touched").exists()


def test_a_trusted_file_gives_its_objects(tmp_path):
    path = written(tmp_path, hyper_parameters={"out": Path("runs")})
    assert load_foreign(path, 0, {}, trusted=True).model == {"out": Path("runs")}
    notice = trust_notice(path)
    assert notice is not None
    assert "pathlib" in notice
    assert "sha256" in notice


def test_plain_files_have_nothing_to_trust_and_damaged_ones_tell_nothing(tmp_path):
    assert trust_notice(written(tmp_path)) is None
    assert described(written(tmp_path)) is None
    (tmp_path / "c.ckpt").write_bytes(b"damaged")
    assert described(tmp_path / "c.ckpt") is None
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_foreign(tmp_path / "c.ckpt", 0, {}, trusted=True)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"hyper_parameters": {1: 2}}, "hyper_parameters must be a dictionary of arguments by name; it has the key 1"),
        ({"hyper_parameters": [1]}, "hyper_parameters must be a dictionary of arguments by name; it is of type list"),
        ({"datamodule_hyper_parameters": "x"}, "datamodule_hyper_parameters must be .*type str"),
        ({"ifloo": "x"}, "ifloo must be a dictionary; it is of type str"),
        ({"ifloo": {}}, r"ifloo\.seed must be a whole number; it is missing"),
        (
            {"ifloo": {"seed": 0, "fingerprint": None, "recipe": {"max_epochs": "x"}}},
            r"ifloo\.recipe must be a dictionary of Trainer settings; it holds 'max_epochs' of type str",
        ),
        ({"state_dict": [1]}, "state_dict must be a dictionary of tensors by name; it is of type list"),
        ({"state_dict": {"lin.weight": 3}}, "state_dict must be .*; it holds 'lin.weight' of type int"),
        ({"epoch": "x"}, "epoch must be a whole number; it is of type str"),
    ],
)
def test_a_part_of_another_type_is_named_with_its_file(content, named, tmp_path):
    with pytest.raises(InputError, match=rf"c\.ckpt: {named}"):
        load_foreign(written(tmp_path, **content), 0, {})


@pytest.mark.parametrize("content", [{"loops": {"fit_loop": [1]}}, {"optimizer_states": [3]}])
def test_a_state_of_the_run_in_another_form_is_an_error_of_the_file(content, tmp_path):
    with pytest.raises(InputError, match=r"c\.ckpt: loops, optimizer_states or lr_schedulers"):
        _ = load_foreign(written(tmp_path, **content), 0, {}).run_state
