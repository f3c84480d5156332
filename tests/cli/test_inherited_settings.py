"""What a checkpoint notes beyond what its class is made with: settings of a parent class, which Lightning adds."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import Namespace

from ifloo.cli.checkpoint_settings import inherit
from ifloo.refit import BaseCheckpoint, TrainerSettings, load_foreign


class Parent(L.LightningModule):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, width)


class Child(Parent):
    def __init__(self, decay: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()


class Open(Parent):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)


@pytest.fixture
def base(tmp_path) -> BaseCheckpoint:
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.strategy.connect(Child(0.25))
    trainer.save_checkpoint(tmp_path / "child.ckpt", weights_only=True)
    return load_foreign(Path(tmp_path / "child.ckpt"), 0, TrainerSettings().identity_settings())


@pytest.mark.parametrize(("made", "settings"), [(Child, {"decay": 0.25}), (Open, {"width": 3, "decay": 0.25})])
def test_settings_that_the_constructor_takes(base, made, settings):
    assert base.model == {"width": 3, "decay": 0.25}
    model = Namespace(class_path=f"{__name__}.{made.__name__}", init_args=Namespace())
    config = Namespace(model=model, data=Namespace(class_path="ifloo.data.MNISTDataModule", init_args=Namespace()))
    inherit(config, Namespace(), base)
    assert vars(config.model.init_args) == settings
