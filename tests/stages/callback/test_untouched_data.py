"""Reading the data for scores changes nothing of them: fits, validations and later fits are bitwise as without."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ifloo.stages import InfluenceCallback
from tests.stages.callback.fits import Plain, fitted
from tests.stages.callback.stateful_data import KINDS, loaders


class Validated(Plain):
    """Keeps its validation losses."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def validation_step(self, batch, batch_idx):
        self.seen.append(nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1]))


class Data(L.LightningDataModule):
    """The same samples for training and validation."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.loader = loaders(kind)

    def train_dataloader(self) -> Any:
        return self.loader

    def val_dataloader(self) -> Any:
        return DataLoader(self.loader.dataset, batch_size=8, collate_fn=self.loader.collate_fn)


def run_twice(kind: str, folder: Any, callbacks: list[L.Callback]) -> tuple[list[Tensor], list[Tensor]]:
    """Fits, validates, and fits again with the same data; returns weights and validation losses."""
    L.seed_everything(0, verbose=False)
    module, data = Validated(), Data(kind)
    fitted(module, data, callbacks, folder).validate(module, data, verbose=False)
    fitted(module, data, callbacks, folder)
    return [x.clone() for x in module.parameters()], module.seen


@pytest.mark.parametrize("kind", [*KINDS, "sampler", "collate", "workers", "persistent workers"])
def test_two_fits_and_a_validation_are_bitwise_as_without_the_callback(tmp_path, kind):
    callback = InfluenceCallback(loaders(kind), every_n_epochs=1, output_dir=tmp_path / "i", overwrite=True)
    with_it = run_twice(kind, tmp_path, [callback])
    without = run_twice(kind, tmp_path, [])
    assert len(with_it[1]) == len(without[1]) > 0
    for mine, other in zip(with_it, without, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    assert (tmp_path / "i" / "epoch_003" / "influences_test_0.npz").exists()
