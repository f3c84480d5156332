"""Recorder of a fit as a sequence of optimizer steps, for methods that differentiate or replay the training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn, optim
from torch.utils.data import IterableDataset

from ifloo.attribution.recorded import State, Update
from ifloo.attribution.updates import SGD, Adam
from ifloo.errors import InputError
from ifloo.models.decay import decoupled
from ifloo.models.fit_settings import FitSettings
from ifloo.objective import batch_size, sample_ids
from ifloo.objective.id_rule import IdRule, IdSetting
from ifloo.objective.recordable import layer_faults
from ifloo.params import ParamSpace
from ifloo.store import RunFolder

KNOWN_RULES = (optim.SGD, optim.Adam, optim.AdamW)  # optimizers whose steps can be replayed


class RunRecorder(L.Callback):
    """Writes batch ids and learning rate of every step, and a state every √T steps.

    A fit whose steps contain more than the recorded step is refused before it starts.
    """

    records_steps = True  # SampleLossModule then allows decoupled decay, since the recorded step contains it

    def __init__(self, folder: RunFolder, ids: IdSetting = "auto") -> None:
        """Records into `folder`, which keeps its old run until the new one is complete.

        Args:
            folder: Folder of the run.
            ids: Setting of the ids, for batches that have none beside them: `third` reads the third item of a tuple.
        """
        self.folder, self.id_rule = folder, IdRule(ids)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Checks that the fit can be replayed, and writes the state before the first step.

        Raises:
            InputError: The fit contains something that a recorded step does not.
        """
        if faults := [
            *fit_faults(FitSettings.of(trainer), trainer.train_dataloader, trainer.optimizers),
            *module_faults(pl_module),
            *optimizer_faults(trainer.optimizers[0]),
        ]:
            raise InputError(_refusal(faults))
        self.update = update_of(trainer.optimizers[0])
        self.every = max(1, math.isqrt(int(trainer.estimated_stepping_batches)))
        self.batch_ids: list[Tensor] = []
        self.rates: list[float] = []
        self.saved: list[int] = []
        self.folder.begin()
        self._keep(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Records the sample ids and the learning rate of this step.

        Raises:
            InputError: The batch has no sample ids.
        """
        carried = sample_ids(batch)
        ids = self.id_rule.carried(batch, batch_size(batch)) if carried is None else carried
        if ids is None:
            raise InputError(
                _refusal(
                    [
                        f"a batch, a {type(batch).__name__}, without sample ids: give each sample its id (key `idx` or "
                        "`sample_index`, or the third item of (x, y, idx) and ids='third')"
                    ]
                )
            )
        self.batch_ids.append(ids.cpu())
        self.rates.append(float(trainer.optimizers[0].param_groups[0]["lr"]))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if len(self.batch_ids) % self.every == 0:
            self._keep(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.batch_ids or trainer.received_sigterm:
            return
        if self.saved[-1] != len(self.batch_ids):
            self._keep(trainer, pl_module)
        self.folder.finish(self.update, self.batch_ids, self.rates, self.saved)

    def _keep(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        step = len(self.batch_ids)
        self.folder.keep(step, state_of(module, trainer.optimizers[0], self.update))
        self.saved.append(step)


def update_of(optimizer: optim.Optimizer) -> Update:
    """Returns the update rule of an optimizer in which `optimizer_faults` finds no fault."""
    group = optimizer.param_groups[0]
    if isinstance(optimizer, optim.SGD):
        return SGD(float(group["momentum"]), float(group["dampening"]), bool(group["nesterov"]))
    decay = float(group["weight_decay"]) if decoupled(optimizer, group) else 0.0
    beta1, beta2 = group["betas"]
    return Adam(float(beta1), float(beta2), float(group["eps"]), decay)


def state_of(module: nn.Module, optimizer: optim.Optimizer, update: Update) -> State:
    """Returns the present state of a fit; moments that the optimizer has not set yet have their initial values."""
    space = ParamSpace.of(module)
    theta = space.values_of(module)
    start = update.start(theta)
    names = ("momentum_buffer",) if isinstance(update, SGD) else ("exp_avg", "exp_avg_sq")
    named = {n: p for n, p in module.named_parameters() if n in set(space.names)}

    def moment(name: str, initial: Tensor) -> Tensor:
        values: Mapping[str, Tensor] = {
            n: x if (x := optimizer.state.get(p, {}).get(name)) is not None else torch.zeros_like(p)
            for n, p in named.items()
        }
        return space.flatten({n: x.detach() for n, x in values.items()}).to(initial)

    return State(theta, tuple(moment(n, x) for n, x in zip(names, start.moments, strict=False)))


def fit_faults(settings: FitSettings, loader: Any, optimizers: Sequence[optim.Optimizer]) -> list[str]:
    """Lists settings of the Trainer that a recorded step would not contain, each with its remedy."""
    present: dict[str, Any] = {
        f"gradient clipping (gradient_clip_val = {settings.gradient_clip_val}): leave it out, and lower the learning "
        "rate if the fit diverges": settings.gradient_clip_val,
        f"accumulation over {settings.accumulate_grad_batches} batches: raise the batch size instead": (
            settings.accumulate_grad_batches != 1
        ),
        f"{len(optimizers)} optimizers: use one": len(optimizers) != 1,
        f"{settings.world_size} processes: fit in one": settings.world_size != 1,
        f"precision {settings.precision}: use 32-true or 64-true": settings.reduced,
        f"a {type(getattr(loader, 'dataset', None)).__name__}, whose samples cannot be found again: give a map-style "
        "dataset": isinstance(getattr(loader, "dataset", None), IterableDataset),
    }
    return [fault for fault, found in present.items() if found]


def module_faults(module: L.LightningModule) -> list[str]:
    """Lists layers and settings of the module that a recorded step would not contain, each with its remedy."""
    faults = layer_faults(module)
    if not module.automatic_optimization:
        faults.append("optimization by hand (automatic_optimization = False): let the Trainer step")
    return faults


def optimizer_faults(optimizer: optim.Optimizer) -> list[str]:
    """Lists settings of the optimizer that a recorded step would not contain, each with its remedy."""
    group, kind = optimizer.param_groups[0], type(optimizer)
    if kind not in KNOWN_RULES:
        return [f"optimizer {kind.__name__}: use SGD, Adam or AdamW"]
    settings = [{k: v for k, v in one.items() if k != "params"} for one in optimizer.param_groups]
    present = {
        "parameter groups of different settings: use one group": any(one != settings[0] for one in settings),
        "amsgrad: leave it out": group.get("amsgrad"),
        "maximize: minimise the negative": group.get("maximize"),
        f"weight decay inside the gradient ({group['weight_decay']}): state it in the module's penalty": (
            group["weight_decay"] and not decoupled(optimizer, group)
        ),
    }
    return [fault for fault, found in present.items() if found]


def _refusal(faults: list[str]) -> str:
    return (
        "This fit is to be recorded for attribution, and the recorded step, one optimizer step on (1/b) Σ w_i ℓ_i + R, "
        "would not contain:\n" + "".join(f"  - {fault}\n" for fault in faults) + "  Change these settings, or choose "
        "methods that need no recorded run."
    )
