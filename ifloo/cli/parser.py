"""Parser of the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from ifloo.cli.former_settings import current_keys


class IflooParser(LightningArgumentParser):
    """Parser that prints errors without the usage of a hundred settings, and accepts keys of earlier releases.

    Arguments that a module or data module requires may be missing: a checkpoint may hold them. What it does not hold
    is asked for once it is read.
    """

    _completed_later = False

    def add_lightning_class_args(  # the type of Lightning's own is a union of its classes
        self, lightning_class: Any, nested_key: str, subclass_mode: bool = False, required: bool = True
    ) -> list[str]:
        """Adds the arguments of a class; the model is optional, since --build may make it."""
        return super().add_lightning_class_args(
            lightning_class, nested_key, subclass_mode, required=required and nested_key != "model"
        )

    def add_class_arguments(self, theclass: type, *args: Any, **settings: Any) -> list[str]:
        """Adds the arguments of a class."""
        if isinstance(theclass, type) and issubclass(theclass, (L.LightningModule, L.LightningDataModule)):
            self._completed_later = True
        added: list[str] = super().add_class_arguments(theclass, *args, **settings)
        return added

    def validate(self, *args: Any, **settings: Any) -> None:
        """Checks values, and whether all required ones are there, except where a checkpoint may complete them."""
        super().validate(*args, **{**settings, "skip_required": True} if self._completed_later else settings)

    def _apply_actions(
        self,
        cfg: Namespace | dict[str, object],
        parent_key: str = "",
        prev_cfg: Namespace | None = None,
        skip_fn: Callable[[object], bool] | None = None,
    ) -> Namespace:
        """Renames former keys, then checks; jsonargparse has no public hook between reading and checking a config."""
        current = current_keys(cfg, parent_key) if isinstance(cfg, dict) else cfg
        checked: Namespace = super()._apply_actions(current, parent_key, prev_cfg, skip_fn)
        return checked

    def print_usage(self, file: object = None) -> None:
        """Prints nothing, where jsonargparse prints a usage before an error."""
