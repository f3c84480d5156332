"""Losses from the `training_step` of a user's module, on a whole batch, on a batch of one, or on each sample by vmap.

Each step runs as within a fit: the batch passes the transfer hooks of the module and data module, and the module is
attached to a Trainer that answers as at the end of the fit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import NoReturn

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from ifloo.errors import InputError, summarise
from ifloo.models.lightning_classes import defines
from ifloo.models.run_state import StandInTrainer
from ifloo.objective.batches import Batch, batch_size
from ifloo.objective.forms import is_opaque, map_tensors, tensors_of, with_items, with_tensors_within, with_values
from ifloo.objective.layers import BATCH_HOOKS
from ifloo.objective.plain import BATCH_OF_ONE, recording
from ifloo.objective.seeded_draws import seeded_by_content
from ifloo.objective.squeezes import squeezes_samples
from ifloo.objective.user_code import passes, user_code, user_error

ON_ONE = "on one sample"


def takes_index(model: L.LightningModule) -> bool:
    """Tells whether a module's `training_step` takes the index of its batch."""
    return _positional(model.training_step) > 1


def run_step(model: L.LightningModule, batch: Batch, index: int = 0, copy: bool = True) -> object:
    """Calls a module's `training_step`, with the index of the batch if it takes one, on a copy of the batch.

    A step may change its batch in place, and a batch may be scored more than once. In a fit the batch is its own: what
    the step adds to it is there in `on_train_batch_end`.
    """
    step: Callable[..., object] = model.training_step
    return step(*(copied(batch) if copy else batch, index)[: max(1, _positional(step))])


def copied(batch: Batch) -> Batch:
    """Returns a batch with tensors of its own, which the user's code may change in place."""
    # Within a transform a batch has no parts but tensors and placeholders, which must not be read.
    of_opaque = None if _transformed() else lambda part: with_tensors_within(part, torch.clone)
    return map_tensors(torch.clone, batch, of_opaque)


def _transformed() -> bool:
    """Tells whether the code runs within a transform of torch.func."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _positional(function: Callable[..., object]) -> int:
    """Returns how many arguments a function takes by position; 2 for any number of them."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return 2 if any(p.kind is p.VAR_POSITIONAL for p in parameters) else sum(p.kind in kinds for p in parameters)


def transferred(model: L.LightningModule, batch: Batch) -> Batch:
    """Applies the transfer hooks to a batch; as Lightning does, those of the data module come first.

    Outside of a fit, what they draw at random is fixed by the content of the batch: a sample has the same loss at each
    pass.

    Raises:
        InputError: A hook failed.
    """
    trainer = model._trainer
    data: L.LightningDataModule | None = None if trainer is None else trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it undeclared
    owners = [(name, hook_owner(name, model, data)) for name in BATCH_HOOKS]
    own = [(name, owner) for name, owner in owners if owner is not model or defines(model, name)]
    if not own:
        return batch
    # A Trainer names the device of the module, where the batch may hold no tensor that is found.
    device = next((x.device for x in tensors_of(batch)), model.device)
    with ExitStack() as stack:
        if isinstance(trainer, StandInTrainer):
            stack.enter_context(seeded_by_content(batch))
            batch = copied(batch)
        for name, owner in own:
            with user_code(f"{name} of {type(owner).__name__}"):
                batch = called_hook(owner, name, batch, device)
    return batch


def hook_owner(
    name: str, model: L.LightningModule, data: L.LightningDataModule | None
) -> L.LightningModule | L.LightningDataModule:
    """Returns whose batch hook of this name Lightning calls: the data module's if it defines one."""
    return data if data is not None and defines(data, name) else model


def called_hook(
    owner: L.LightningModule | L.LightningDataModule, name: str, batch: Batch, device: torch.device
) -> Batch:
    """Calls a batch hook by its name."""
    if name == "on_before_batch_transfer":
        return owner.on_before_batch_transfer(batch, 0)
    if name == "transfer_batch_to_device":
        return owner.transfer_batch_to_device(batch, device, 0)
    return owner.on_after_batch_transfer(batch, 0)


def loss_of_step(model: L.LightningModule, batch: Batch, when: str, copy: bool = True) -> Float[Tensor, ""]:
    """Computes the loss that `training_step` returns for a batch, nats.

    As in a fit, operations are recorded: a step may take gradients itself, as a gradient penalty does.

    Args:
        model: The user's own module.
        batch: Batch.
        when: Phrase on the batch, for the message.
        copy: Whether the step runs on a copy of the batch; a fit gives the batch itself.

    Raises:
        InputError: The step failed, or returned no loss.
    """
    recorded = torch.is_grad_enabled()
    batch = transferred(model, batch)
    try:
        with recording():
            out = run_step(model, batch, copy=copy)
    except Exception as error:
        if passes(error):
            raise
        what = f"training_step of {type(model).__name__}"
        failure = user_error(what, when, error, _remedy(model, batch if when == ON_ONE else None))
        raise failure from error
    loss = loss_in(
        out, model, "a batch of one", "Give the losses as a function of your own: sample_losses(model, batch) -> [b]."
    )
    # A copy that the caller does not record drops the graph, and keeps derivatives in forward mode, which detach drops.
    return loss if recorded else loss.clone()


def _remedy(model: L.LightningModule, one: Batch | None) -> str:
    """Returns sentences for a step that failed: on a squeeze() of a batch of one, and on hooks that run in a fit alone.

    Args:
        model: Module of the step.
        one: Batch of one on which the step failed; None for a larger one.
    """
    with recording():
        squeezed = one is not None and squeezes_samples(lambda: run_step(model, one))
    return " ".join(filter(None, [BATCH_OF_ONE if squeezed else "", _remedy_of_hooks(model)]))


def _remedy_of_hooks(model: L.LightningModule) -> str:
    """Returns a sentence on the hooks of a module that run in a fit alone, if it has some."""
    hooks = [name for name in ("on_fit_start", "on_train_start", "on_train_epoch_start") if defines(model, name)]
    if not hooks:
        return ""
    return (
        f"No fit starts before scoring: what {summarise(hooks)} would set must be set in __init__ or setup, or be in "
        "the checkpoint (a buffer, on_save_checkpoint and on_load_checkpoint)."
    )


def losses_by_vmap(model: L.LightningModule, batch: Batch) -> Float[Tensor, " b"]:
    """Computes the loss of `training_step` on each sample of a batch as a batch of one, in one call.

    Every tensor of the batch must have the samples as its first dimension.
    """

    def one_loss(*parts: Tensor) -> Tensor:
        return loss_of_step(model, _sample(batch, iter(parts), batch_size(batch)), ON_ONE)

    parts = (x for x in tensors_of(batch, within_opaque=False) if x.ndim)
    return vmap(one_loss, randomness="different")(*parts)


def _sample(batch: Batch, parts: Iterator[Tensor], b: int) -> Batch:
    """Builds a batch of one from the tensors of one sample, in the order of the batch's tensors."""
    if isinstance(batch, Tensor):
        return next(parts).unsqueeze(0) if batch.ndim else batch
    if isinstance(batch, Mapping):
        return with_values(batch, {k: _sample(v, parts, b) for k, v in batch.items()})
    if isinstance(batch, (tuple, list)):
        if len(batch) == b and next(tensors_of(batch), None) is None:
            return _NoTensor(f"list of {type(batch[0]).__name__}")
        items = [_sample(v, parts, b) for v in batch]
        return with_items(batch, items)
    return _NoTensor(type(batch).__name__) if is_opaque(batch) else batch


class _NoTensor:
    """Placeholder for a list of one object per sample, e.g. texts, or an opaque part: vmap cannot split it, and reading
    it fails.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def _read(self, *_: object) -> NoReturn:
        raise InputError(
            f"training_step reads a part of the batch that is not a tensor (a {self._kind}), but single "
            "samples are passed to it as tensors only.\n"
            "  Give the losses as a function of your own (sample_losses), or put tensors into the batch."
        )

    __len__ = __getitem__ = __iter__ = __contains__ = __eq__ = __str__ = _read
    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> NoReturn:
        if name == "to":  # asked when the batch is copied, and no part of the sample
            raise AttributeError(name)
        self._read()


def loss_in(out: object, owner: nn.Module, given: str, remedy: str) -> Float[Tensor, ""]:
    """Returns the loss in what a training step returned: a tensor of one number, or the entry `loss` of a mapping.

    Args:
        out: What the step returned.
        owner: Module of the step.
        given: Noun phrase for the batch of the step, for the message.
        remedy: Sentence for the last line of the message.

    Raises:
        InputError: There is no such loss.
    """
    loss = out.get("loss") if isinstance(out, Mapping) else out
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.reshape(())
    found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise InputError(
        f"{type(owner).__name__}.training_step on {given} gave {found} as its loss; one number is needed.\n  {remedy}"
    )


def refuse_without_step(model: L.LightningModule) -> None:
    name = type(model).__name__
    if not model.automatic_optimization:
        raise InputError(
            f"{name} optimizes by hand (automatic_optimization = False): its training_step takes optimizer "
            "steps, so that it cannot be run for the loss of a sample, whatever it returns.\n"
            "  Give the losses as a function of your own: sample_losses(model, batch) -> [b]."
        )
    if not defines(model, "training_step"):
        raise InputError(
            f"{name} has no training_step that could be run on one sample.\n"
            "  Give the losses as a function of your own: sample_losses(model, batch) -> [b]."
        )
