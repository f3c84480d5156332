"""Replay of a training step on a copy of the user's module, as the Trainer ran it at the end of the fit.

Lightning's order of hooks is kept: batch transfer, `on_train_batch_start`, `training_step` in the precision of the fit,
`on_before_backward`, `backward`, `on_after_backward`, `on_before_optimizer_step`, `optimizer_step`. No weight is moved,
nothing is clipped, and no callback, logger or file is involved. A fit that accumulates gradients adds up such steps,
each divided by their number, so that one of them is compared.
"""

from __future__ import annotations

import copy
import logging
import random
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from torch import Tensor, nn
from torch.optim import Optimizer

from ifloo.models.decay import COUPLED, decoupled
from ifloo.models.fit_settings import optimizers_in
from ifloo.models.lightning_classes import defines
from ifloo.models.run_state import RunState, StandInTrainer, attached, batches_in, stand_in_trainer
from ifloo.models.training_step import called_hook, hook_owner, loss_in, run_step, takes_index
from ifloo.objective.batches import Batch, to_device
from ifloo.objective.certificate import Part
from ifloo.objective.functional import uncompiled_graphs
from ifloo.objective.layers import BATCH_HOOKS
from ifloo.objective.randomness import undisturbed
from ifloo.objective.step_comparison import Samples, Without
from ifloo.objective.user_code import user_code
from ifloo.stages.certificate.coarsest_float import CoarsestFloat
from ifloo.stages.certificate.drawn_batches import CollateSamples
from ifloo.stages.certificate.gradient_hooks import GradientHooks
from ifloo.stages.certificate.manual_optimization import manual_gradients
from ifloo.stages.certificate.optimizer_step import stepped_gradients
from ifloo.stages.certificate.parts import modes_without, parts_of
from ifloo.stages.certificate.trained_parameters import trained_parameters
from ifloo.stages.isolation import detached

log = logging.getLogger(__name__)
SEED = 0  # random numbers of every replay: two that differ in one part draw the same
WIDE = 1 << 25  # entries up to which gradients are held in float64
START_HOOKS: Mapping[str, Callable[[L.LightningModule], object]] = {
    "on_fit_start": lambda module: module.on_fit_start(),
    "on_train_start": lambda module: module.on_train_start(),
    "on_train_epoch_start": lambda module: module.on_train_epoch_start(),
}


@dataclass(frozen=True)
class ReplaySource:
    """What a training step is replayed from.

    Attributes:
        module: The user's own module at the weights that are scored, its layers in the modes of training.
        collate: Function that makes a batch of samples.
        state: State of the run at the end of the fit.
        datamodule: Data module of the fit, as the user wrote it.
        loader: Training loader, for modules that read it.
        names: Names of the attributed parameters.
        hooks: Hooks on the gradients of the user's own weights, which a copy of the module loses.
        ran: Whether this very module has run through the fit, so that its hooks for the start of one were called.
        batches: Samples of the compared batches, in their order.
    """

    module: L.LightningModule
    collate: CollateSamples
    state: RunState
    datamodule: L.LightningDataModule | None
    loader: object
    names: tuple[str, ...]
    hooks: GradientHooks
    ran: bool = False
    batches: Sequence[Samples] = ()


@dataclass
class _Copy:
    """A copy of the module in one precision, with what restores it.

    Attributes:
        module: The copy.
        precision: Lightning's plugin for the precision.
        trainer: Idle Trainer that it reads.
        tensors: Values of parameters and buffers by name.
        hooks: Hooks on the gradients of its weights.
        optimizers: Its optimizers, which take no step; empty if they cannot be made.
    """

    module: L.LightningModule
    precision: Precision
    trainer: StandInTrainer
    tensors: dict[str, Tensor]
    hooks: GradientHooks
    optimizers: list[Optimizer] = field(default_factory=list)

    @torch.no_grad()
    def restore(self, unit: float | None) -> None:
        """Restores all values, and moves each weight by one rounding, up or down at random, if `unit` is not None.

        Args:
            unit: Unit roundoff of the coarsest arithmetic in the step.
        """
        for name, tensor in _tensors(self.module).items():
            if name in self.tensors and tensor.shape == self.tensors[name].shape:
                tensor.copy_(self.tensors[name])
        if unit is not None:
            generator = torch.Generator().manual_seed(SEED)
            for p in self.module.parameters():
                signs = torch.randint(0, 2, p.shape, generator=generator).to(p.device, p.dtype) * 2 - 1
                p.mul_(1 + signs * max(torch.finfo(p.dtype).eps, 2 * unit))


class Replay:
    """The training step of a LightningModule (see `ifloo.objective.step_comparison.TrainingStep`).

    Attributes:
        source: What is replayed.
        parts: Parts of the step that can be taken away, with a noun phrase for each.
        sizes: Number of entries of each attributed parameter, by name, in the order of the gradient.
        size: Number of entries of all attributed parameters.
        unit_roundoff: Unit roundoff of the coarsest arithmetic in the step in full precision: that of the weights, or
            of a loss that converts to fewer bits, as those of Hugging Face do.
        longest_sum: Length of the longest inner product of a layer.
    """

    def __init__(self, source: ReplaySource) -> None:
        """Copies the module.

        Raises:
            InputError: If the module cannot be copied.
        """
        self.source = source
        self._copies: dict[tuple[str, bool], _Copy] = {}
        self._measured = False
        plain = self._copy("")
        parameters = dict(plain.module.named_parameters())
        chosen = {name: parameters[name] for name in source.names}
        self.sizes: Mapping[str, int] = {name: p.numel() for name, p in chosen.items()}
        self.size = sum(self.sizes.values())
        self.unit_roundoff = max(torch.finfo(p.dtype).eps for p in chosen.values()) / 2
        self.longest_sum = max([p.numel() // p.shape[0] for p in parameters.values() if p.ndim > 1 and len(p)] or [1])
        self.parts: Mapping[Part, str] = parts_of(
            plain.module, source.datamodule, source.state, bool(plain.hooks), not source.ran
        )
        if any(map(self._index, source.batches)) and takes_index(plain.module):
            self.parts = {**self.parts, Part.BATCH_INDEX: Part.BATCH_INDEX.value}

    def gradient(self, samples: Samples, without: Without = (), rounded: bool = False) -> Float[Tensor, " q"]:
        """Returns the gradient of the step; see `TrainingStep`.

        Raises:
            InputError: If the user's code fails on the batch.
        """
        off = frozenset(without)
        precision = "" if Part.PRECISION in off else self.source.state.precision
        held = self._copy(precision, started=Part.STATE not in off)
        with ExitStack() as stack:
            stack.enter_context(self._moment(held, off))
            held.restore(self.unit_roundoff if rounded else None)
            module = held.module
            for layer in modes_without(module, off):
                layer.training = False
                stack.callback(setattr, layer, "training", True)
            if Part.GRADIENT_HOOKS not in off:
                stack.enter_context(held.hooks.registered(module))
            held.trainer.training = Part.TRAINING_FLAG not in off
            for p in module.parameters():
                p.grad = None
            what, when = f"training_step of {type(module).__name__}", f"when it was run again on {len(samples)} samples"
            full = Part.PRECISION in off or Part.PRECISION not in self.parts
            with user_code(what, when, _LEAVE_OUT), self._measuring_precision(full):
                batch = self._transferred(held, self.source.collate(samples), off)
                found = self._gradients(held, batch, off, 0 if Part.BATCH_INDEX in off else self._index(samples))
        return torch.cat([self._flat(module, name, found) for name in self.sizes])

    @contextmanager
    def _measuring_precision(self, full: bool) -> Generator[None, None, None]:
        """Reads the coarsest arithmetic in the first step in full precision."""
        if not full or self._measured:
            yield
            return
        self._measured = True
        with CoarsestFloat() as found:
            yield
        self.unit_roundoff = max(self.unit_roundoff, found.eps / 2)

    def decay(self) -> Float[Tensor, " q"]:
        """Returns the gradient that the optimizers add by coupled weight decay."""
        held = self._copy("")
        added: dict[int, Tensor] = {}
        for optimizer in held.optimizers:
            for group in optimizer.param_groups:
                if isinstance(optimizer, COUPLED) and group.get("weight_decay") and not decoupled(optimizer, group):
                    added |= {id(p): group["weight_decay"] * p.detach() for p in group["params"]}
        parameters = dict(held.module.named_parameters())
        flat = [added.get(id(parameters[n]), torch.zeros_like(parameters[n])).detach() for n in self.sizes]
        return wide(torch.cat([x.reshape(-1) for x in flat]), self.size)

    def decoupled_decay(self) -> float:
        """Returns the largest decay of attributed parameters that the optimizers apply beside the gradient."""
        held = self._copy("")
        parameters = dict(held.module.named_parameters())
        chosen = {id(parameters[name]) for name in self.sizes}
        found = [
            float(group["weight_decay"])
            for optimizer in held.optimizers
            for group in optimizer.param_groups
            if group.get("weight_decay")
            and decoupled(optimizer, group)
            and not chosen.isdisjoint(map(id, group["params"]))
        ]
        return max(found, default=0.0)

    def trained(self) -> tuple[str, ...] | None:
        """Returns the names of the parameters that an optimizer moves; None if the optimizers are not known."""
        held = self._copy("")
        return trained_parameters(held.module, held.optimizers)

    def _flat(self, module: nn.Module, name: str, found: Mapping[int, Tensor]) -> Tensor:
        parameter = module.get_parameter(name)
        gradient = found.get(id(parameter), torch.zeros_like(parameter)).detach()
        return wide(gradient.to_dense() if gradient.is_sparse else gradient, self.size).reshape(-1)

    def _copy(self, precision: str, started: bool = True) -> _Copy:
        """Returns a copy of the module.

        Args:
            precision: Lightning's name; the empty one is that of the weights.
            started: Whether its hooks for the start of a fit are called.
        """
        key = (precision if precision in _PLUGINS else "", started)
        if key not in self._copies:
            self._copies[key] = self._made(*key)
        return self._copies[key]

    def _made(self, precision: str, started: bool) -> _Copy:
        source = self.source
        module = detached(source.module)
        device = next(module.parameters()).device
        plugin = _PLUGINS[precision](precision, device.type)
        if not precision and any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters()):
            module = module.float()
        module = plugin.convert_module(module)  # type: ignore[assignment]  # the same module in another dtype
        if not any(layer.training for layer in module.modules()):
            module.train()
        data = copy.copy(source.datamodule) if source.datamodule is not None else None
        trainer = stand_in_trainer(source.state, data, source.loader, module)
        unsaved = _unsaved(module)
        tensors = {name: x.detach().clone() for name, x in _tensors(module).items() if name not in unsaved}
        held = _Copy(module, plugin, trainer, tensors, source.hooks)
        with self._moment(held, frozenset(), updates=True):
            if started and not source.ran:
                self._start(held)
            # Buffers that no checkpoint holds are what these hooks made of them.
            held.tensors |= {n: x.detach().clone() for n, x in _tensors(module).items() if n not in held.tensors}
            held.restore(None)
            with suppress(Exception):  # read by the doctor, which says what fails
                held.optimizers = list(optimizers_in(module.configure_optimizers()))
        return held

    def _start(self, held: _Copy) -> None:
        for name, call in START_HOOKS.items():
            try:
                if defines(held.module, name):
                    call(held.module)
            except Exception as error:  # a hook may need what only a fit has
                log.info("%s is not part of the replayed training step: %s", name, error)
        held.hooks = held.hooks.taken_from(held.module)

    @contextmanager
    def _moment(self, held: _Copy, off: frozenset[Part], updates: bool = False) -> Generator[None, None, None]:
        """Attaches the copy to a Trainer at the end of the fit, with seeded random numbers and gradients on.

        What the step changes of the module is as before afterwards, unless `updates` keeps it.
        """
        trainer, state = held.trainer, self.source.state
        trainer.run_state = _first(state) if Part.MOMENT in off else state
        with ExitStack() as stack:
            stack.enter_context(undisturbed())
            seed = SEED + (Part.SEED in off)
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            stack.enter_context(uncompiled_graphs())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if trainer.datamodule is not None:
                stack.enter_context(attached(trainer.datamodule, trainer))
            stack.enter_context(attached(held.module, trainer, changing=updates))
            stack.callback(setattr, trainer, "run_state", state)
            yield

    def _transferred(self, held: _Copy, batch: Batch, off: frozenset[Part]) -> Batch:
        """Returns the batch on the device, through the hooks of module and data module as Lightning calls them."""
        module, precision = held.module, held.precision
        parameter = next(module.parameters())
        batch = precision.convert_input(batch)
        if parameter.dtype is torch.float64:  # weights may be scored in a higher precision than they were fitted in
            batch = to_device(batch, torch.device("cpu"), torch.float64)
        if Part.BATCH_HOOKS in off:
            return L.LightningModule.transfer_batch_to_device(module, batch, parameter.device, 0)
        for name in BATCH_HOOKS:
            owner = hook_owner(name, module, held.trainer.datamodule)
            batch = called_hook(owner, name, batch, parameter.device)
        return batch

    def _index(self, samples: Samples) -> int:
        """Returns the index of a batch in an epoch; 0 where an epoch has no such batch."""
        found = next((k for k, batch in enumerate(self.source.batches) if batch is samples), 0)
        return found if found < batches_in(self.source.loader) else 0

    def _gradients(self, held: _Copy, batch: Batch, off: frozenset[Part], index: int) -> dict[int, Tensor]:
        """Runs the step; returns the gradients by identity of the parameter."""
        module, hooked = held.module, Part.GRADIENT_HOOKS not in off
        module.on_train_batch_start(batch, index)
        if not module.automatic_optimization:
            return manual_gradients(module, held.optimizers, held.precision, lambda k: run_step(module, batch, k))

        def taken() -> Tensor:
            for p in module.parameters():
                p.grad = None
            return self._backward(held, batch, index, hooked)

        loss = taken()
        for optimizer in held.optimizers[:1] if hooked else ():
            module.on_before_optimizer_step(optimizer)
            if defines(module, "optimizer_step"):
                return stepped_gradients(module, optimizer, loss, taken)
        return {id(p): p.grad for p in module.parameters() if p.grad is not None}

    def _backward(self, held: _Copy, batch: Batch, index: int, hooked: bool) -> Tensor:
        """Runs the step and its backward pass; returns the loss."""
        module = held.module
        with held.precision.train_step_context():
            out = run_step(module, batch, index)
            loss = loss_in(
                out, module, "a batch of the training loader", "Return the loss, or a dict with the key loss."
            )
        if not hooked:
            loss.backward()
        else:
            module.on_before_backward(loss)
            module.backward(loss)
            module.on_after_backward()
        return loss.detach()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _unsaved(module: nn.Module) -> set[str]:
    """Returns the names of buffers that no checkpoint holds."""
    parts = module.named_modules()
    return {f"{path}.{name}".lstrip(".") for path, part in parts for name in part._non_persistent_buffers_set}


def wide(x: Tensor, size: int) -> Tensor:
    """Returns a tensor in float64, on the host where the device lacks it; as it is if the gradient is very long.

    Args:
        x: Part of a gradient, or all of it.
        size: Length of the whole gradient.
    """
    if size > WIDE and x.dtype is torch.float32:
        return x
    return x.double() if x.device.type != "mps" else x.cpu().double()


def _first(state: RunState) -> RunState:
    """Returns the state at the start of a fit."""
    return replace(state, epoch=0, global_step=0)


_LEAVE_OUT = (
    "The check that J is what was trained runs it on a copy of the module; --adapt.accept_objective true leaves the "
    "check out."
)
_PLUGINS: Mapping[str, Callable[[str, str], Precision]] = {
    "": lambda name, device: Precision(),
    "64-true": lambda name, device: DoublePrecision(),
    "16-true": lambda name, device: HalfPrecision("16-true"),
    "bf16-true": lambda name, device: HalfPrecision("bf16-true"),
    "16-mixed": lambda name, device: MixedPrecision("16-mixed", device),
    "bf16-mixed": lambda name, device: MixedPrecision("bf16-mixed", device),
}
