"""Copies of modules, batches and loaders in 64 bits, for truth."""

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader


def doubled(batch: Any) -> Any:
    """Returns a batch of any form with its floating-point tensors in 64 bits."""
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, (list, tuple)):
        return type(batch)([doubled(part) for part in batch])
    if isinstance(batch, Mapping):
        made: MutableMapping[Any, Any] = copy.deepcopy(batch)  # type: ignore[assignment]
        for key, part in batch.items():
            made[key] = doubled(part)
        return made
    if hasattr(batch, "__dict__"):
        other = copy.copy(batch)
        other.__dict__.update({name: doubled(part) for name, part in vars(batch).items()})
        return other
    return batch


def doubled_loader(loader: Any) -> DataLoader[Any]:
    """Returns a loader of the same batches in 64 bits."""
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        collate_fn=lambda samples: doubled(loader.collate_fn(samples)),
    )


def doubled_model(model: Any) -> Any:
    """Returns a copy of a trained module in 64 bits, attached to the same Trainer."""
    other = copy.deepcopy(model).double()
    other.trainer = model.trainer
    return other
