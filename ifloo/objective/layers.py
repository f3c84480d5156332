"""Facts about the layers and hooks of a module that attribution depends on, each stated once.

Layers are recognised by their torch class, hooks by the name of the method. A layer is judged in its current mode: a
layer that is in evaluation mode before a fit is trained in that mode, and draws no random numbers. Functions that a
forward pass calls (`F.dropout`) are not visible here; `ifloo.doctor.forward_trace` runs the module once to see them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ifloo.params import prefix_of

# Lightning calls these on each batch between the training loader and `training_step`.
BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")

_RANDOM_POOLING = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


@dataclass(frozen=True)
class RandomLayer:
    """A layer that draws random numbers in its current mode.

    Attributes:
        path: Path of the layer in the author's own module.
        draws: Noun for the random quantity.
        remedy: Clause that tells how to remove the randomness.
        share: Share p of the entries that are dropped; 0 for layers that draw something else.
        in_every_mode: Whether the layer is random in evaluation mode too.
    """

    path: str
    draws: str
    remedy: str
    share: float = 0.0
    in_every_mode: bool = False


def random_layers(module: nn.Module) -> list[RandomLayer]:
    """Returns the layers with random output: dropout (also within attention and recurrence), RReLU, random pooling."""
    return [
        found for path, layer in module.named_modules() if (found := _random_layer(layer, layer_path(module, path)))
    ]


def is_random(layer: nn.Module) -> bool:
    """Tells whether this layer itself, regardless of its children, is one of `random_layers`."""
    return _random_layer(layer, "") is not None


def running_norms(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns path and layer of each normalisation in training mode that keeps running statistics for evaluation."""
    return [(n, m) for n, m in _layers(module, nn.modules.batchnorm._NormBase) if m.training and has_statistics(m)]


def mixing_norms(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns path and layer of each BatchNorm without running statistics, which mixes samples in every mode."""
    return [(n, m) for n, m in _layers(module, nn.modules.batchnorm._BatchNorm) if not has_statistics(m)]


def has_statistics(norm: Any) -> bool:
    """Tells whether a normalising layer keeps running statistics."""
    return norm.running_mean is not None


def attention_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns path and layer of each attention with fused kernels, which have no second derivative."""
    return list(_layers(module, nn.MultiheadAttention))


def recurrent_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns path and layer of each recurrent layer, for which `torch.func.vmap` has no rule."""
    return list(_layers(module, (nn.RNNBase, nn.RNNCellBase)))


def kinds(found: Sequence[tuple[str, nn.Module]]) -> str:
    """Lists the classes of these layers, each once."""
    return ", ".join(dict.fromkeys(type(m).__name__ for _, m in found))


def places(module: nn.Module, found: Sequence[tuple[str, nn.Module]]) -> list[str]:
    """Returns the `layer_path` of each of these layers."""
    return [layer_path(module, path) for path, _ in found]


def layer_path(module: nn.Module, path: str) -> str:
    """Returns the path of a layer in the author's own module; the class name if the layer is that module itself."""
    prefix = prefix_of(module)
    within = f"{path}.".removeprefix(prefix).rstrip(".")
    return within or type(module.get_submodule(prefix.rstrip("."))).__name__


def _random_layer(layer: nn.Module, path: str) -> RandomLayer | None:
    if (share := _dropped(layer)) > 0 and layer.training:
        return RandomLayer(path, "dropout", "set it to 0", share)
    if isinstance(layer, nn.RReLU) and layer.training and layer.lower < layer.upper:
        return RandomLayer(path, "slopes of RReLU", "use LeakyReLU")
    if isinstance(layer, _RANDOM_POOLING) and layer._random_samples is None:
        return RandomLayer(path, f"regions of {type(layer).__name__}", "use AdaptiveMaxPool", in_every_mode=True)
    return None


def _dropped(layer: nn.Module) -> float:
    """Returns the share p that a layer itself drops in training mode; its child layers are counted separately."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return float(layer.p)
    if isinstance(layer, nn.MultiheadAttention):
        return float(layer.dropout)
    if isinstance(layer, nn.RNNBase) and layer.num_layers > 1:  # dropout acts between its layers
        return float(layer.dropout)
    return 0.0


def _layers(module: nn.Module, classes: type | tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    return ((n, m) for n, m in module.named_modules() if isinstance(m, classes))
