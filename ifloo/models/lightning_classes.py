"""Modules and data modules of either Lightning package: `lightning` and `pytorch_lightning` define each class twice."""

from __future__ import annotations

from typing import TypeGuard

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden

from ifloo.objective.counterparts import counterparts


def is_module(value: object) -> TypeGuard[L.LightningModule]:
    """Whether the value is a LightningModule of either package; both have the same members."""
    return isinstance(value, counterparts(L.LightningModule))


def is_data_module(value: object) -> TypeGuard[L.LightningDataModule]:
    """Whether the value is a LightningDataModule of either package."""
    return isinstance(value, counterparts(L.LightningDataModule))


def defines(owner: L.LightningModule | L.LightningDataModule, name: str) -> bool:
    """Whether a module or data module defines this method itself, where Lightning has a default."""
    defaults = counterparts(L.LightningModule) if is_module(owner) else counterparts(L.LightningDataModule)
    return all(is_overridden(name, owner, one) for one in defaults)
