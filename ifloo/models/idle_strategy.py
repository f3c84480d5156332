"""Strategy of an idle Trainer: a module's optimizers and schedulers, made on first use, whose steps move nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer, _init_optimizers_and_lr_schedulers
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ifloo.errors import InputError
from ifloo.objective.exchanged import once_each

Saved: TypeAlias = Mapping[str, Any]  # state dict of an optimizer or scheduler, whose keys are its own


class _Configured(NamedTuple):
    """Optimizers and schedulers that `configure_optimizers` returned."""

    optimizers: list[Optimizer]
    schedulers: list[LRSchedulerConfig]


class IdleStrategy(SingleDeviceStrategy):
    """Strategy of one device whose optimizers hold stand-ins for the weights: no step changes the module.

    Attributes:
        saved_optimizers: State of each optimizer that is restored, without values per weight.
        saved_schedulers: State of each scheduler that is restored.
    """

    def __init__(self, saved_optimizers: Sequence[Saved] = (), saved_schedulers: Sequence[Saved] = ()) -> None:
        """Starts without a module."""
        self.saved_optimizers, self.saved_schedulers = saved_optimizers, saved_schedulers
        self._described: L.LightningModule | None = None
        self._made: _Configured | None = None
        self._parameters: dict[str, Tensor] = {}
        super().__init__("cpu")

    def describe(self, module: L.LightningModule) -> None:
        """Records shapes and devices of the module's parameters; optimizers made for another module are dropped.

        It is called before a functional call replaces parameters, since their replacements may lack `requires_grad`.
        """
        if self._described is module:
            return
        self._described, self._parameters = module, _stand_ins(module)
        self._root_device = next((p.device for p in self._parameters.values()), torch.device("cpu"))
        self._made = None

    def enter(self, module: L.LightningModule | None) -> L.LightningModule | None:
        """Makes a module the one that the Trainer runs; returns the one before."""
        before = self._lightning_module
        if module is not None:
            self.describe(module)
        self._lightning_module = self._model = module
        return before

    @property
    def optimizers(self) -> list[Optimizer]:
        return self._configured().optimizers

    @optimizers.setter
    def optimizers(self, optimizers: list[Optimizer]) -> None:
        """Does nothing: the optimizers are those of `configure_optimizers`."""

    @property
    def _lightning_optimizers(self) -> list[LightningOptimizer]:
        return [LightningOptimizer._to_lightning_optimizer(one, self) for one in self.optimizers]

    @_lightning_optimizers.setter
    def _lightning_optimizers(self, optimizers: list[LightningOptimizer]) -> None:
        """Does nothing: the base class assigns an empty list."""

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        return self._configured().schedulers

    @lr_scheduler_configs.setter
    def lr_scheduler_configs(self, configs: list[LRSchedulerConfig]) -> None:
        """Does nothing: the base class assigns an empty list."""

    def _configured(self) -> _Configured:
        """Returns optimizers of the module over stand-ins of its weights, in the saved state; none without a module.

        Raises:
            InputError: If the saved state is of other optimizers.
        """
        module = self.lightning_module
        if module is None:
            return _Configured([], [])
        if self._made is None:
            names = {f"module.{name}": parameter for name, parameter in self._parameters.items()}
            configuring = _Configuring(module)
            made = _Configured(*functional_call(configuring, once_each(configuring, names), (), tie_weights=False))
            _restore(module, made, self.saved_optimizers, self.saved_schedulers)
            self._made = made
        return self._made


class _Configuring(nn.Module):
    """A module whose forward pass configures optimizers: functional_call can run nothing but a forward pass."""

    def __init__(self, module: L.LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
        made: tuple[list[Optimizer], list[LRSchedulerConfig]] = _init_optimizers_and_lr_schedulers(self.module)
        return made


def _stand_ins(module: nn.Module) -> dict[str, Tensor]:
    """Returns a parameter of zeros for each of the module's, which takes the memory of one number."""
    found = dict(module.named_parameters())
    trained = {name for name, p in found.items() if p.requires_grad} or set(found)
    return {name: nn.Parameter(_zeros(p), requires_grad=name in trained) for name, p in found.items()}


def _zeros(like: Tensor) -> Tensor:
    if is_lazy(like):
        return torch.zeros(0, device=like.device)
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape)


def _restore(
    module: L.LightningModule, made: _Configured, optimizers: Sequence[Saved], schedulers: Sequence[Saved]
) -> None:
    """Restores learning rates and counters.

    Raises:
        InputError: If the saved state is of other optimizers.
    """
    loads: list[tuple[Callable[[dict[str, Any]], object], Saved]] = []
    if optimizers and len(optimizers) == len(made.optimizers):
        loads += [(to.load_state_dict, saved) for to, saved in zip(made.optimizers, optimizers, strict=True)]
    if schedulers and len(schedulers) == len(made.schedulers):
        loads += [(to.scheduler.load_state_dict, saved) for to, saved in zip(made.schedulers, schedulers, strict=True)]
    if (optimizers or schedulers) and len(loads) != len(optimizers) + len(schedulers):
        raise InputError(_other(module, "another number of optimizers or schedulers"))
    for load, saved in loads:
        try:
            load(copy.deepcopy(dict(saved)))
        except (ValueError, KeyError) as error:
            raise InputError(_other(module, str(error))) from error


def _other(module: L.LightningModule, how: str) -> str:
    return (
        f"The checkpoint holds the state of other optimizers than {type(module).__name__}.configure_optimizers makes: "
        f"{how}.\n  Name the checkpoint of this module, or do not read optimizers in the loss."
    )
