"""Whether replicas trained together end where each would alone: by what the settings say, and by one batch."""

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
from ifloo.refit.recipe import Refitter, TrainerSettings
from ifloo.refit.strategies.stacked_module import StackedModule
from ifloo.refit.strategies.unsuitable import StrategyError

# Each entry of a parameter is stepped from its own gradients alone.
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
# What runs during a fit and may touch weights, gradients or batches of the one module it is written for.
HOOKS = (
    *("setup", "configure_model", "configure_sharded_model", "configure_callbacks"),
    *("on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_train_epoch_start", "on_train_epoch_end"),
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "optimizer_zero_grad"),
    *("on_before_backward", "backward", "on_after_backward", "on_before_optimizer_step", "optimizer_step"),
    *("configure_gradient_clipping", "clip_gradients", "lr_scheduler_step"),
    *BATCH_HOOKS,
)
REORDERING_ULPS = 1e4  # by which gradients summed in another order may differ; a wrong one differs by far more


@dataclass(frozen=True)
class MemoryPerReplica:
    """What one replica takes.

    Attributes:
        weights: bytes of θ.
        activations: bytes kept of one batch for its backward pass.
        device: where.
    """

    weights: int
    activations: int
    device: torch.device


def check_stackable(refitter: Refitter) -> MemoryPerReplica:
    """Looks at settings first, then at the start of a fit: its optimizer, and both gradients of its first batch.

    Raises:
        StrategyError: stacked replicas would not end where refits one by one do; the text says why.
    """
    module = refitter.start()
    for reason in (_of_settings(refitter), _of_module(module)):
        if reason:
            raise StrategyError(reason)
    looking = _StackableCheck(refitter.seed)
    try:
        refitter.train(lambda: module, looking)
    except _CheckDone:
        assert looking.appetite is not None
        return looking.appetite
    raise StrategyError("its training loader gives no batch")


def _of_settings(refitter: Refitter) -> str | None:
    recipe: TrainerSettings = refitter.recipe
    if refitter.finish.after == "always":
        return "finish.after = always asks for Newton steps at the end of each refit"
    if recipe.precision not in ("32-true", "64-true"):
        return f"precision {recipe.precision} is too coarse to compare replicas with one model (use 32-true or 64-true)"
    if recipe.gradient_clip_val and recipe.gradient_clip_algorithm != "value":
        return (
            f"gradient_clip_val = {recipe.gradient_clip_val:g} clips by the norm over all replicas "
            "(gradient_clip_algorithm value would not)"
        )
    return None


def _of_module(module: object) -> str | None:
    name = type(module).__name__
    if not isinstance(module, SampleLossModule):
        return f"{name} is no SampleLossModule, so its training loss is not known to be J"
    if not module.automatic_optimization:
        return f"{name} optimizes by hand (automatic_optimization = False)"
    if hooks := overridden(module, HOOKS, SampleLossModule, Adapted):
        return f"{name} overrides {', '.join(hooks)}, written for one set of weights"
    return None


class _CheckDone(Exception):  # ruff: ignore[error-suffix-on-exception-name]  (no error: it ends a fit that was begun for a look)
    pass


class _StackableCheck(L.Callback):
    """Ends a fit at its first batch, after having looked at everything that decides."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.appetite: MemoryPerReplica | None = None

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
        self.appetite = self._compare(pl_module, batch)
        raise _CheckDone

    def _compare(self, module: SampleLossModule, batch: Batch) -> MemoryPerReplica:
        """The gradient of two replicas against that of the module itself, on one batch.

        Raises:
            StrategyError: they differ, or there is none.
        """
        space, kept, before = ParamSpace.of(module), _Kept(module), _buffers(module)
        with torch.enable_grad(), kept.counting():
            alone = self._gradient(lambda: module.training_step(batch, 0), [*map(module.get_parameter, space.names)])
        changed = [name for name, x in _buffers(module).items() if not torch.equal(x, before[name])]
        if changed:
            raise StrategyError(f"training changes buffers ({', '.join(changed[:3])}), which replicas share")
        pair = StackedModule(module, space.values_of(module).expand(2, -1), [SampleWeights()] * 2).to(module.device)
        try:
            with torch.enable_grad():
                both = self._gradient(lambda: pair.replica_losses(batch).sum(), list(pair.stacked), batch_dims=1)
        except (RuntimeError, ValueError) as error:  # what torch.func.vmap and layers under it raise
            raise StrategyError(
                f"torch.func.vmap cannot run its loss over replicas: {first_sentence(error)}"
            ) from error
        apart = float((both - alone).norm(dim=1).max())
        # Not <=: NaN is a difference too.
        if not apart <= REORDERING_ULPS * torch.finfo(alone.dtype).eps * (1 + float(alone.norm())):
            raise StrategyError(
                f"on its first batch the gradient of a replica is {apart:.1e} away from that of the model alone "
                f"(of norm {float(alone.norm()):.1e})"
            )
        return MemoryPerReplica(alone.numel() * alone.element_size(), kept.bytes, module.device)

    def _gradient(
        self, loss: Callable[[], Tensor], parameters: list[Tensor], batch_dims: int = 0
    ) -> Float[Tensor, "*k p"]:
        """∇ of a loss, flat.

        Raises:
            StrategyError: it is sparse.
        """
        L.seed_everything(self.seed, verbose=False)  # each draws the same random numbers
        gradients = torch.autograd.grad(loss(), parameters, materialize_grads=True)
        if any(g.is_sparse for g in gradients):
            raise StrategyError("a parameter has sparse gradients, by which optimizers step some entries only")
        return torch.cat([g.reshape(*g.shape[:batch_dims], -1) for g in gradients], dim=-1)


class _Kept:
    """Counts the bytes a forward pass keeps for its backward pass, each storage once."""

    def __init__(self, module: SampleLossModule) -> None:
        self._of_module = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers())}
        self._storages: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        return sum(size for place, size in self._storages.items() if place not in self._of_module)

    def counting(self) -> torch.autograd.graph.saved_tensors_hooks:
        def pack(x: Tensor) -> Tensor:
            self._storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)


def _buffers(module: SampleLossModule) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in module.named_buffers()}
