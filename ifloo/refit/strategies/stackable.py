"""Check that stacked replicas would end where refits one by one do: by settings, module and the first batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, optim

from ifloo.errors import first_sentence
from ifloo.models import Adapted, SampleLossModule
from ifloo.models.hooks import overridden
from ifloo.objective import Batch, SampleWeights, sample_ids
from ifloo.objective.layers import BATCH_HOOKS
from ifloo.params import ParamSpace
from ifloo.refit.newton_finish import NewtonFinish
from ifloo.refit.refitter import Refitter
from ifloo.refit.strategies.base import StrategyError
from ifloo.refit.strategies.stacked_module import StackedModule
from ifloo.refit.trainer_settings import TrainerSettings

# Optimizers whose step of each entry of a parameter depends on the gradients of this entry only.
ELEMENTWISE = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.NAdam,
    optim.RAdam,
    optim.Adamax,
    optim.RMSprop,
    optim.Rprop,
    optim.Adagrad,
    optim.Adadelta,
    optim.ASGD,
)
# Hooks of a fit that may change weights, gradients or batches, and are written for a single set of weights.
HOOKS = (
    *("setup", "configure_model", "configure_sharded_model", "configure_callbacks"),
    *("on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_train_epoch_start", "on_train_epoch_end"),
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "optimizer_zero_grad"),
    *("on_before_backward", "backward", "on_after_backward", "on_before_optimizer_step", "optimizer_step"),
    *("configure_gradient_clipping", "clip_gradients", "lr_scheduler_step"),
    *BATCH_HOOKS,
)
REORDERING_ULPS = 1e4  # allowed difference of gradients summed in another order; a wrong one differs by far more


@dataclass(frozen=True)
class MemoryPerReplica:
    """Memory that one replica needs during training.

    Attributes:
        weights: Size of θ, bytes.
        activations: Size of the activations kept of one batch for its backward pass, bytes.
        device: Device of the replica.
    """

    weights: int
    activations: int
    device: torch.device


def check_stackable(refitter: Refitter) -> MemoryPerReplica:
    """Checks the settings and the module, then starts a fit and checks its optimizer and the gradients of one batch.

    Returns:
        The memory that one replica needs.

    Raises:
        StrategyError: If stacked replicas would not end where refits one by one do; the text gives the reason.
    """
    module = refitter.start()
    for reason in (_fault_of_settings(refitter), _fault_of_module(module)):
        if reason:
            raise StrategyError(reason)
    check = _StackableCheck(refitter.seed)
    try:
        refitter.train(lambda: module, check)
    except _CheckDone:
        assert check.memory is not None
        return check.memory
    raise StrategyError("its training loader gives no batch")


def _fault_of_settings(refitter: Refitter) -> str | None:
    """Returns why the settings exclude stacked replicas; None if they do not."""
    settings: TrainerSettings = refitter.trainer_settings
    if overridden(refitter.finish, ["end_fit"], NewtonFinish):
        return f"{type(refitter.finish).__name__} overrides end_fit, written for one set of weights"
    if refitter.finish.after == "always":
        return "finish.after = always asks for Newton steps at the end of each refit"
    if settings.precision not in ("32-true", "64-true"):
        return (
            f"precision {settings.precision} is too coarse to compare replicas with one model (use 32-true or 64-true)"
        )
    if settings.gradient_clip_val and settings.gradient_clip_algorithm != "value":
        return (
            f"gradient_clip_val = {settings.gradient_clip_val:g} clips by the norm over all replicas "
            "(gradient_clip_algorithm value would not)"
        )
    return None


def _fault_of_module(module: object) -> str | None:
    """Returns why the module excludes stacked replicas; None if it does not."""
    name = type(module).__name__
    if not isinstance(module, SampleLossModule):
        return f"{name} is no SampleLossModule, so its training loss is not known to be J"
    if not module.automatic_optimization:
        return f"{name} optimizes by hand (automatic_optimization = False)"
    if isinstance(module, Adapted) and len(module.batch_weights.ids):
        return f"training_step of {type(module.model).__name__} weighs the samples of a batch unequally"
    if hooks := overridden(module, HOOKS, SampleLossModule, Adapted):
        return f"{name} overrides {', '.join(hooks)}, written for one set of weights"
    return None


class _CheckDone(Exception):  # ruff: ignore[error-suffix-on-exception-name]  (no error: ends the fit after the check)
    pass


class _StackableCheck(L.Callback):
    """Checks optimizer, schedule and first batch of a fit, then ends the fit.

    Attributes:
        seed: Random seed, set before each of the gradients compared.
        memory: Memory that one replica needs; None before the check has passed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.memory: MemoryPerReplica | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        kinds = [type(o) for o in trainer.optimizers]  # one: Lightning itself refuses several
        if not set(kinds) <= set(ELEMENTWISE):
            raise StrategyError(f"optimizer {kinds[0].__name__} does not step each weight by its own gradients alone")
        if any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs):
            raise StrategyError("ReduceLROnPlateau follows a metric, and each replica has its own")

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, _: int) -> None:
        if sample_ids(batch) is None:
            raise StrategyError("its batches carry no sample ids to look weights up by")
        assert isinstance(pl_module, SampleLossModule)
        self.memory = self._compare(pl_module, batch)
        raise _CheckDone

    def _compare(self, module: SampleLossModule, batch: Batch) -> MemoryPerReplica:
        """Compares the gradients of two replicas on one batch with that of the module itself.

        Returns:
            The memory that one replica needs, measured on the way.

        Raises:
            StrategyError: If they differ or cannot be computed, or if training changes buffers.
        """
        space, saved, before = ParamSpace.of(module), _SavedActivations(module), _buffers(module)
        with torch.enable_grad(), saved.counting():
            alone = self._gradient(lambda: module.training_step(batch, 0), [*map(module.get_parameter, space.names)])
        changed = [name for name, x in _buffers(module).items() if not torch.equal(x, before[name])]
        if changed:
            raise StrategyError(f"training changes buffers ({', '.join(changed[:3])}), which replicas share")
        pair = StackedModule(module, space.values_of(module).expand(2, -1), [SampleWeights()] * 2).to(module.device)
        try:
            with torch.enable_grad():
                both = self._gradient(lambda: pair.replica_losses(batch).sum(), list(pair.stacked), batch_dims=1)
        except (RuntimeError, ValueError) as error:  # raised by torch.func.vmap, and by layers inside it
            raise StrategyError(
                f"torch.func.vmap cannot run its loss over replicas: {first_sentence(error)}"
            ) from error
        difference = float((both - alone).norm(dim=1).max())
        # `not <=` rather than `>`, so that NaN counts as a difference.
        if not difference <= REORDERING_ULPS * torch.finfo(alone.dtype).eps * (1 + float(alone.norm())):
            raise StrategyError(
                f"on its first batch the gradient of a replica is {difference:.1e} away from that of the model alone "
                f"(of norm {float(alone.norm()):.1e})"
            )
        return MemoryPerReplica(alone.numel() * alone.element_size(), saved.bytes, module.device)

    def _gradient(
        self, loss: Callable[[], Tensor], parameters: list[Tensor], batch_dims: int = 0
    ) -> Float[Tensor, "*k p"]:
        """Computes the flattened gradient of a loss.

        Raises:
            StrategyError: If it is sparse.
        """
        L.seed_everything(self.seed, verbose=False)  # so that both gradients draw the same random numbers
        gradients = torch.autograd.grad(loss(), parameters, materialize_grads=True)
        if any(g.is_sparse for g in gradients):
            raise StrategyError("a parameter has sparse gradients, by which optimizers step some entries only")
        return torch.cat([g.reshape(*g.shape[:batch_dims], -1) for g in gradients], dim=-1)


class _SavedActivations:
    """Counts the bytes that a forward pass saves for its backward pass, each storage once."""

    def __init__(self, module: SampleLossModule) -> None:
        self._of_module = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers())}
        self._storages: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Size of all saved storages except those of parameters and buffers."""
        return sum(size for address, size in self._storages.items() if address not in self._of_module)

    def counting(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Returns a context in which saved tensors are counted."""

        def pack(x: Tensor) -> Tensor:
            self._storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)


def _buffers(module: SampleLossModule) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in module.named_buffers()}
