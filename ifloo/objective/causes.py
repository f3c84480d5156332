"""Likely causes of losses that differ where they should agree, seen in a module, a batch and one more pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ifloo.errors import summarise
from ifloo.objective.batches import Batch
from ifloo.objective.layers import layer_path, mixing_norms, places, random_layers
from ifloo.objective.randomness import undisturbed

IGNORED = (-100, 255)  # labels that are left out of a mean by convention: of texts, of segmentations
SAME_RATIO = 1e-3  # relative difference within which a loss counts as b times the mean


def causes_of_other_mean(module: nn.Module, batch: Batch, ratio: float, b: int) -> str:
    """Returns sentences on why a training step on a batch is not the mean of those on its samples alone.

    Args:
        module: Module whose training step it is.
        batch: Batch of several samples.
        ratio: Loss of the batch, divided by the mean over its samples.
        b: Number of samples in the batch.
    """
    seen = []
    if abs(ratio / b - 1) < SAME_RATIO:
        seen.append(f"the loss is a sum over the batch: it is {b} times the mean (take reduction='mean')")
    seen += [
        f"{name} weights its classes, so that a mean over the batch divides by other weights than a mean over "
        "one sample"
        for name, layer in module.named_modules()
        if _class_weights(layer)
    ]
    for path, tensor in _named_tensors(batch):
        found = [value for value in IGNORED if _is_label(tensor) and bool((tensor == value).any())]
        if found:
            seen.append(
                f"{path} holds {found[0]}, a label that is left out (ignore_index): a batch mean counts a sample by "
                "its number of valid labels, not by 1/b"
            )
        elif _is_mask(path, tensor):
            seen.append(f"{path} masks padding: a mean over the valid tokens of a batch counts long samples more")
    if norms := mixing_norms(module):
        seen.append(f"BatchNorm mixes the samples of a batch ({summarise(places(module, norms))})")
    if seen:
        return f"Seen: {'; '.join(seen)}."
    return (
        "Causes are padding or ignore_index (a mean over valid tokens or pixels), class weights, BatchNorm by batch "
        "statistics, a loss across the batch (contrastive), or a sum in place of the mean."
    )


def cause_of_change(module: nn.Module, run: Callable[[], object]) -> str:
    """Returns the likely cause of two passes that differ, from one more pass: random numbers, or a state that changes.

    Args:
        module: Module that runs; its state afterwards is that of one more pass.
        run: Function that runs the pass.
    """
    before = dict(_states(module))
    with undisturbed():
        sources = _random_sources()
        run()
        drawn = [name for name, state in _random_sources().items() if state != sources[name]]
    changed = [
        layer_path(module, name)
        for name, value in _states(module)
        if name not in before or not _same(value, before[name])
    ]
    if changed:
        return f"a state that each pass changes ({summarise(changed)}): a counter, a buffer or a running mean"
    if drawn:
        layers = [layer.path for layer in random_layers(module)]
        where = f" ({summarise(layers)})" if layers else "" if drawn == ["torch"] else f" (by {summarise(drawn)})"
        return f"random numbers drawn in the pass{where}: dropout or noise that is on while scoring"
    return "something outside the module: a global counter, a file, the time, or a random generator of its own"


def _random_sources() -> dict[str, object]:
    """Returns the state of each global source of random numbers by the name of its module."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "Python's random": random.getstate(),
        "numpy.random": repr(np.random.get_state(legacy=False)),
    }


def _class_weights(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.CrossEntropyLoss, nn.NLLLoss)) and layer.weight is not None


def _is_label(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int64, torch.int32, torch.int16)  # bytes of 255 are pixels


def _is_mask(path: str, tensor: Tensor) -> bool:
    return "mask" in path and tensor.ndim > 1 and bool((tensor == 0).any()) and bool((tensor != 0).any())


def _named_tensors(batch: Batch, path: str = "the batch") -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        yield path, batch
    elif isinstance(batch, Mapping):
        for name, value in batch.items():
            yield from _named_tensors(value, str(name))
    elif isinstance(batch, (tuple, list)):
        for i, value in enumerate(batch):
            yield from _named_tensors(value, f"item {i} of {path}")


def _states(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yields name and copy of each number or tensor that a layer keeps, parameters excepted."""
    for name, layer in module.named_modules():
        for key, value in (*vars(layer).items(), *layer.named_buffers(recurse=False)):
            place = f"{name}.{key}" if name else key
            if isinstance(value, Tensor):
                yield place, value.detach().clone()
            elif isinstance(value, (int, float)):
                yield place, value
            elif isinstance(value, list):
                yield place, len(value)


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    return a == b
