"""Adapter by which a plain LightningModule meets the model contract: sample losses and penalty.

A wrapper that only holds the module would not do: the Trainer calls the hooks of the module it is given, checkpoints
must keep the names of the user's parameters, and `self.log` in the user's steps must see the hook that is running.
`Adapted` therefore forwards every hook that the module's class overrides, its state dict and its hyperparameters.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Generator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int
from lightning.fabric.utilities.data import AttributeDict
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from ifloo.errors import InputError
from ifloo.former_names import FormerNameWarning
from ifloo.models.decay import COUPLED, decoupled
from ifloo.models.lightning_classes import defines, is_module
from ifloo.models.module import SampleLossModule
from ifloo.models.run_state import RunState, StandInTrainer, attached, stand_in_trainer
from ifloo.models.training_step import ON_ONE, copied, loss_of_step, losses_by_vmap, refuse_without_step, transferred
from ifloo.objective.batches import Batch, sample_ids, without_ids
from ifloo.objective.counterparts import counterparts
from ifloo.objective.epoch_weights import EpochWeights
from ifloo.objective.functional import silenced
from ifloo.objective.layers import BATCH_HOOKS
from ifloo.objective.plain import recording
from ifloo.objective.singles import Apart
from ifloo.objective.user_code import user_code
from ifloo.objective.weights import SampleWeights

# Functions that the user provides, typed by the user's own classes.
SampleLossFunction = Callable[..., Tensor]  # (the user's module, a batch) -> [b], nats
PenaltyFunction = Callable[..., Tensor]  # the user's module -> [], nats

_OURS = frozenset(
    {
        *("training_step", "configure_optimizers", "on_train_start", "setup", "configure_model"),
        *("state_dict", "load_state_dict", "load_from_checkpoint"),
        *BATCH_HOOKS,  # applied before each training step, to the batch without its ids
    }
)


class Adapted(SampleLossModule):
    """A plain LightningModule that meets the contract; parameters, checkpoints and hooks remain those of the module.

    ℓ_i is computed by `sample_losses`, or else by the module's own `training_step` on batches of one under vmap: a
    penalty that the step adds then counts as part of ℓ_i, and of L_t.

    Attributes:
        model: The wrapped module.
        losses: Function that computes ℓ; None for the module's `training_step`.
        l2: λ of ½λ‖θ‖² over the module's trainable parameters, nats.
        batch_weights: Relative weight a_i of each sample in the loss of a batch, Σ a_i ℓ_i / Σ a_i, by id; all 1 where
            the loss of a batch is the mean.
        shares: Weight c_i of each sample in J = Σ c_i ℓ_i + R, by id; no id is listed where J is the plain mean.
    """

    wraps = "model."  # prefix of the parameter names, which patterns of parameter names leave out

    def __init__(
        self,
        model: nn.Module,
        sample_losses: SampleLossFunction | None = None,
        penalty: PenaltyFunction | None = None,
        l2: float = 0.0,
        skip_training: bool = False,
        *,
        still: bool | None = None,
    ) -> None:
        """Wraps a module without copying it.

        Args:
            model: LightningModule to wrap, of either Lightning package.
            sample_losses: Function of (model, batch) that returns ℓ, `[b]`, nats, unreduced, without penalty.
            penalty: Function of the model that returns the part of R(θ) beside ½λ‖θ‖², `[]`, nats.
            skip_training: Whether the optimizer takes no step; the training is left to a later stage, such as a Newton
                finish.
            l2: λ. A `weight_decay` of λ that the optimizer adds to the gradient is the same penalty; it is set to 0
                when training starts, so that the penalty is not counted twice.
            still: Former name of `skip_training`; None: not given.

        Raises:
            InputError: If λ is negative, both names of `skip_training` are given, or the module optimizes manually and
                `sample_losses` is not given.
        """
        super().__init__()
        assert is_module(model)
        if still is not None:
            skip_training = _of_former_name(type(self), skip_training, still)
        if not 0 <= l2 < float("inf"):
            raise InputError(f"l2 must be a finite number >= 0, got {l2}.")
        if sample_losses is None:
            refuse_without_step(model)
        self.model = model
        self.losses, self.own_penalty, self.l2 = sample_losses, penalty, l2
        self.skip_training = skip_training
        self.one_by_one = sample_losses is None
        self._complete = False
        self._record_trainable()
        self._stand_in: StandInTrainer | None = None
        self.batch_weights, self.shares = SampleWeights(), SampleWeights()
        for name in _overridden(model):
            hook = getattr(model, name)
            of_batch = name.endswith(("_batch_start", "_batch_end"))
            setattr(self, name, partial(_without_ids, hook) if of_batch else hook)

    def sample_losses(self, batch: Batch) -> Float[Tensor, " b"]:
        """Computes ℓ of each sample, nats.

        Raises:
            InputError: If `training_step` returns no loss, or reads a part of the batch that is not a tensor.
        """
        with self._as_in_the_fit():
            if self.losses is None:
                return losses_by_vmap(self.model, batch)
            own = copied(transferred(self.model, batch))
            with user_code(f"sample_losses given for {type(self.model).__name__}"), recording():
                return self.losses(self.model, own)

    def describe_fit(self, state: RunState, datamodule: object = None, train_loader: object = None) -> None:
        """States the fit that ended with these weights; outside of fits the module reads it from its Trainer.

        Args:
            state: Epoch, steps and settings at the end of the fit.
            datamodule: Data module of the fit, as the user wrote it.
            train_loader: Training loader; by default that of the data module or module.
        """
        data = datamodule if isinstance(datamodule, counterparts(L.LightningDataModule)) else None
        self._stand_in = stand_in_trainer(state, data, train_loader, self.model)

    @property
    def fit_described(self) -> StandInTrainer | None:
        """The Trainer that answers as at the end of the fit; None before the fit is described or read."""
        return self._stand_in

    @contextmanager
    def _as_in_the_fit(self) -> Generator[None, None, None]:
        """Attaches the Trainer of the present fit, or else one that answers as at the end of the fit, until exit."""
        if self._trainer is not None and self._trainer.training:
            with silenced(self.model, updates=True):
                yield
            return
        if self._stand_in is None:
            own = self.model._trainer
            if own is None or isinstance(own, StandInTrainer):
                self.describe_fit(RunState())
            else:
                self.describe_fit(RunState.of_trainer(own), own.datamodule)  # type: ignore[attr-defined]  # undeclared
        assert self._stand_in is not None
        with attached(self.model, self._stand_in):
            yield

    def single_loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Computes ℓ of the sample in a batch of one, nats: by definition the loss of the training step on it."""
        if self.losses:
            return super().single_loss(batch)
        with self._as_in_the_fit():
            return loss_of_step(self.model, batch, ON_ONE)

    def step_loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Computes the loss that the module's `training_step` returns for a batch, nats."""
        with self._as_in_the_fit():
            return loss_of_step(self.model, batch, "on a batch")

    def weighted_loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Computes the loss of a fit on a batch: that of the user's own training step while all weights are equal.

        Samples with other weights come apart from their batch (`Apart`): the step runs on the rest, and on each of
        them alone unless its weight is zero.

        Raises:
            InputError: Samples have weights of their own, and the batch carries no ids.
        """
        if not self.one_by_one:
            return super().weighted_loss(batch)
        inner, ids = without_ids(batch), sample_ids(batch)
        if isinstance(inner, Apart):
            return self._loss_of_parts(inner)
        listed = len(self.sample_weights.ids) > 0
        if listed and (ids is None or not self.sample_weights.equal_for(ids)):
            return super().weighted_loss(batch)
        with self._as_in_the_fit():  # a Trainer that is training gives each batch to one step: that of the user
            fitting = not isinstance(self.model._trainer, StandInTrainer)
            return self.sample_weights.default * loss_of_step(self.model, inner, "on a batch", copy=not fitting)

    def state_weights(self, ids: Int[Tensor, " n"], weights: EpochWeights | None) -> None:
        """States the weights of the training samples, whose ids in their order these are; none where J is the mean."""
        order = torch.argsort(ids)
        self.batch_weights, self.shares = SampleWeights(), SampleWeights()
        if weights is not None:
            self.shares = SampleWeights(0.0, ids[order].cpu(), weights.shares[order].cpu())
        if weights is not None and weights.in_batch is not None:
            self.batch_weights = SampleWeights(1.0, ids[order].cpu(), weights.in_batch[order].cpu())

    def share_of(self, ids: Sequence[int]) -> float | None:
        """Returns Σ c_i of these samples in J = Σ c_i ℓ_i; None if J is the plain mean."""
        if not len(self.shares.ids):
            return None
        return float(self.shares.of(torch.tensor(list(ids), dtype=torch.int64), torch.float64).sum())

    def weights_of(self, ids: Int[Tensor, " n"]) -> EpochWeights | None:
        """Returns the weights stated for the samples with these ids; None if none are."""
        if not len(self.shares.ids):
            return None
        in_batch = self.batch_weights.of(ids, torch.float64) if len(self.batch_weights.ids) else None
        return EpochWeights(self.shares.of(ids, torch.float64), in_batch, "")

    def _loss_of_parts(self, parts: Apart) -> Float[Tensor, ""]:
        dtype = next(self.model.parameters()).dtype
        rest, single = (self.batch_weights.of(ids, dtype) for ids in (parts.rest_ids, parts.single_ids))
        total = rest.sum() + single.sum()
        # If nothing is left, zero with a gradient.
        loss = 0.0 * torch.stack([p.sum() for p in self.model.parameters() if p.requires_grad]).sum()
        if parts.rest is not None:
            loss = self.sample_weights.default * rest.sum() / total * self.step_loss(parts.rest)
        weights = self.sample_weights.of(parts.single_ids, dtype) * single / total
        for weight, one in zip(weights, parts.singles.batches, strict=True):
            if bool(weight):
                loss = loss + weight * self.single_loss(one)
        return loss

    def penalty(self) -> Float[Tensor, ""]:
        """Computes ½λ‖θ‖² plus the penalty function given, nats; zero if neither was given."""
        trained = [p for n, p in self.model.named_parameters() if n in self._trainable]
        squares = torch.stack([p.square().sum() for p in trained]).sum() if self.l2 else trained[0].new_zeros(())
        own = self.own_penalty(self.model) if self.own_penalty else 0.0
        return 0.5 * self.l2 * squares + own

    def configure_optimizers(self) -> Any:  # of the module's form: Lightning accepts more than its type declares
        if self.skip_training:
            return torch.optim.SGD(self.model.parameters(), lr=0.0)
        return self.model.configure_optimizers()

    @property
    def trainer(self) -> L.Trainer:
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: L.Trainer | None) -> None:
        """Attaches the Trainer to the wrapped module too, whichever Lightning package that is of."""
        L.LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]  # a property, which mypy takes apart
        self.model.trainer = trainer

    def set_up(self, trainer: L.Trainer) -> None:
        """Calls `setup` and `configure_model` of the wrapped module, once: a later fit would make its layers again."""
        if self._complete:
            return
        name = type(self.model).__name__
        with attached(self.model, trainer, changing=True):
            with user_code(f"setup of {name}"):
                self.setup("fit")
            with user_code(f"configure_model of {name}"):
                self.configure_model()

    def setup(self, stage: str) -> None:
        if not self._complete:
            self.model.setup(stage)

    def configure_model(self) -> None:
        """Completes the module; a Trainer calls this after `setup`."""
        if not self._complete:
            self.model.configure_model()
        self._complete = True
        self._record_trainable()

    def _record_trainable(self) -> None:
        """Records which parameters are trained: in a functional call their replacements may lack `requires_grad`."""
        self._trainable = frozenset(n for n, p in self.model.named_parameters() if p.requires_grad)

    def again(self, model: L.LightningModule) -> Adapted:
        """Adapts another module of the same class in the same way."""
        again = type(self)(model, self.losses, self.own_penalty, self.l2, self.skip_training)
        again.batch_weights, again.shares = self.batch_weights, self.shares
        return again

    def on_train_start(self) -> None:
        """Sets a coupled weight decay equal to λ to zero, since the penalty contains it; refuses any other decay."""
        self.model.on_train_start()
        for optimizer in self.trainer.optimizers:
            if type(optimizer) in COUPLED:
                for group in optimizer.param_groups:
                    if self.l2 and group.get("weight_decay") == self.l2 and not decoupled(optimizer, group):
                        group["weight_decay"] = 0.0
        super().on_train_start()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # of many forms
        """Returns the state dict of the wrapped module, so that checkpoints are checkpoints of that module."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(  # the module's own may take other arguments
        self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> _IncompatibleKeys:
        """Loads weights into the wrapped module, which is converted to float64 if the weights are float64."""
        # A Trainer with precision 64-true does not record the precision in the module.
        if any(isinstance(v, Tensor) and v.dtype is torch.float64 for v in state_dict.values()):
            self.model.to(torch.float64)
        found: _IncompatibleKeys = self.model.load_state_dict(state_dict, *args, **kwargs)
        self._record_trainable()
        return found

    @property
    def hparams(self) -> AttributeDict | MutableMapping[str, object]:
        with user_code(f"hparams of {type(self.model).__name__}"):
            return self.model.hparams

    @property
    def hparams_initial(self) -> AttributeDict:
        with user_code(f"hparams_initial of {type(self.model).__name__}"):
            return self.model.hparams_initial

    @property
    def _current_fx_name(self) -> str | None:
        """Name of the running hook, which Lightning sets for `self.log`; forwarded because the wrapped module logs."""
        model = self._modules.get("model")
        return model._current_fx_name if is_module(model) else None

    @_current_fx_name.setter
    def _current_fx_name(self, name: str | None) -> None:
        if is_module(model := self._modules.get("model")):
            model._current_fx_name = name


def _of_former_name(adapter: type[Adapted], skip_training: bool, still: bool) -> bool:
    if skip_training:
        raise InputError(
            "skip_training and still are both given.\n  Give skip_training alone: still is its former name."
        )
    warnings.warn(f"The argument still of {adapter.__name__} is now skip_training.", FormerNameWarning, stacklevel=3)
    return still


def unwrap(module: L.LightningModule) -> L.LightningModule:
    """Returns the user's own module, without the adapter around it."""
    return module.model if isinstance(module, Adapted) else module


def _without_ids(hook: Callable[..., object], *arguments: object) -> object:
    """Calls a hook of the user's with the batch as its loader yields it."""
    return hook(*map(without_ids, arguments))


def _overridden(model: L.LightningModule) -> list[str]:
    """Lists the hooks and steps of LightningModule that the module's class overrides."""
    public = {n for n in dir(L.LightningModule) if not n.startswith("_") and n not in _OURS}
    functions = [n for n, _ in inspect.getmembers(L.LightningModule, inspect.isfunction) if n in public]
    nn_own = {n for n in dir(nn.Module) if n != "forward"}
    return [n for n in functions if n not in nn_own and defines(model, n)]
