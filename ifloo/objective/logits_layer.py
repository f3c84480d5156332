"""The linear map whose output is the logits, found by watching a forward pass: the order of layers tells nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional
from torch.utils.data import DataLoader
from typing_extensions import TypeIs

from ifloo.errors import InputError, summarise
from ifloo.objective.batches import Batch, slice_batch, to_module, without_ids
from ifloo.objective.forms import tensors_of
from ifloo.objective.functional import scoring
from ifloo.objective.loaders import separately, sequential
from ifloo.objective.parameters_after import parameters_after
from ifloo.objective.plain import recordable, recording
from ifloo.objective.protocol import contract_of
from ifloo.objective.singles import Singles, first_draw
from ifloo.params import author_name, tied_name

LinearMap: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class NoLogitsLayerError(InputError):
    """A module has no last layer through which alone its samples could be scored."""


LEAF = "torch::autograd::AccumulateGrad"  # name of the node of a parameter in the graph


@dataclass
class _Graph:
    """What one pass of a sample shows.

    Attributes:
        ends: Outputs of the layers that are met first on the way back from the loss, in the graph.
        outputs: Name of the layer of each such place in the graph.
        parameters: Parameters that are met on the way without passing a layer.
        affine: Names of the linear maps that gave W x + b at each call.
    """

    ends: list[Node]
    outputs: dict[Node, str]
    parameters: list[Tensor]
    affine: set[str]


def is_linear_map(layer: nn.Module) -> TypeIs[LinearMap]:
    """Tells whether a layer is z = W x + b at each position: an `nn.Linear`, or a convolution of one pixel."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        unpadded = layer.padding == "valid" or all(p == 0 for p in layer.padding)
        return unpadded and layer.groups == 1 and all(k == 1 for k in (*layer.kernel_size, *layer.stride))
    return isinstance(layer, nn.Linear)


def logits_layer(module: nn.Module, batch: Batch) -> str:
    """Returns the name of the linear map whose output is the logits, as seen in one sample's way to its loss.

    From the loss back, that is the first layer with parameters on every path: its output reaches the loss through
    functions without trainable parameters only, but for parameters of one number (a temperature), which stay fixed as
    all others do. A layer whose output also feeds another such layer (an auxiliary loss of hidden activations) is not
    the last. Layers without trainable weights are left out. Whether a layer is linear, and what acts on its output, is
    measured and not read off the kinds of its operations.

    Args:
        module: Module that states its losses; nothing of it is changed.
        batch: Samples, of which the first is run in evaluation mode.

    Raises:
        NoLogitsLayerError: No such layer exists, several do (several heads), its weight is that of another layer, or a
            parameter acts on its output.
    """
    graph = _graph(module, batch)
    reached = _reached(module, graph)
    found = [name for name, layer in reached.items() if name in graph.affine and _has_trainable_weight(layer)]
    names = [author_name(module, name) for name in found]
    if len(names) > 1:
        raise NoLogitsLayerError(
            f"The outputs of {len(names)} layers are logits ({summarise(names)}): none of them is the last layer.\n"
            f"  Name one: parameters ['{names[0]}.*']; the others are then fixed."
        )
    if not names:
        others = [f"{author_name(module, n)} ({type(m).__name__})" for n, m in reached.items() if n]
        raise NoLogitsLayerError(
            f"No trainable linear map (nn.Linear, convolution of one pixel) gives the logits; last before the loss: "
            f"{summarise(others) if others else 'no layer'}.\n"
            "  Name the parameters to attribute, or take a method for all of them."
        )
    (name,) = found
    own = [f"{name}.{n}" for n, _ in module.get_submodule(name).named_parameters() if n != "bias"]
    if (shared := next(filter(None, (tied_name(module, n) for n in own)), None)) is not None:
        raise NoLogitsLayerError(
            f"The weight of the last layer {names[0]} is also {author_name(module, shared)}: its inputs depend on it.\n"
            "  Name other parameters to attribute, or take a method for all of them."
        )
    _refuse_parameters_after(module, batch, name, graph.parameters)
    return name


def first_sample(loader: DataLoader[Batch], module: nn.Module) -> Batch:
    """Returns the first sample of a loader alone, on the device and in the precision of a module."""
    return to_module(next(iter(sequential(separately(loader, with_whole=False), 1, slice(0, 1)))), module)


def _has_trainable_weight(layer: nn.Module) -> bool:
    """Tells whether parameters other than a bias are trained; those of a normed weight have names of their own."""
    return any(p.requires_grad for name, p in layer.named_parameters() if name != "bias")


def _graph(module: nn.Module, batch: Batch) -> _Graph:
    """Runs one sample and walks back from its loss to the first layers."""
    graph = _Graph([], {}, [], set())
    with recording(), scoring(module), _watched(module, graph):
        loss = _one_loss(module, batch)
    graph.ends, leaves = _ends([loss.grad_fn], graph.outputs)
    graph.parameters = [leaf.variable for leaf in leaves]  # type: ignore[attr-defined]  # of the nodes named LEAF
    return graph


def _reached(module: nn.Module, graph: _Graph) -> dict[str, nn.Module]:
    """Returns the layers with parameters whose outputs reach the loss through functions without parameters only."""
    layers, outputs = dict(module.named_modules()), graph.outputs
    upstream = set[str]()
    for end in graph.ends:
        upstream |= {outputs[node] for node in _ends(_before(end), outputs, past=True)[0]} - {outputs[end]}
    return {name: layers[name] for name in dict.fromkeys(outputs[end] for end in graph.ends) if name not in upstream}


def _refuse_parameters_after(module: nn.Module, batch: Batch, name: str, met: Sequence[Tensor]) -> None:
    """Checks that no parameter of more than one number acts on the output of a layer, such as a bias added after it.

    Raises:
        NoLogitsLayerError: One does: the output is not yet the logits.
    """
    names = {p: n for n, p in module.named_parameters()}
    several = {names[p]: p for p in met if isinstance(p, nn.Parameter) and p in names and p.numel() > 1}
    if not several:
        return
    fixed = [n for n, layer in module.named_modules() if _is_layer(layer)]

    def loss() -> Tensor:
        return _one_loss(module, batch)

    with recording(), scoring(module):
        acting = parameters_after(module, name, fixed, several, loss)
    if acting:
        own = [author_name(module, n) for n in acting]
        one, layer = len(own) == 1, author_name(module, name)
        raise NoLogitsLayerError(
            f"Parameter{'' if one else 's'} {summarise(own)} act{'s' if one else ''} on the output of layer {layer}, "
            "which is therefore not the logits.\n"
            f"  Name the parameters to attribute, such as {[f'{layer}.*', *own]}, or take a method for all of them."
        )


def _one_loss(module: nn.Module, batch: Batch) -> Tensor:
    inner = without_ids(batch)
    one = inner.batches[0] if isinstance(inner, Singles) else slice_batch(inner, slice(0, 1))
    one = recordable(first_draw(one))
    contract = contract_of(module)
    return contract.single_loss(one) if contract.one_by_one else contract.sample_losses(one).sum()


@contextmanager
def _watched(module: nn.Module, graph: _Graph) -> Generator[None, None, None]:
    """Records the place in the graph of what each layer with parameters of its own gives, until exit."""
    other = set[str]()

    def record(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(layer: nn.Module, given: tuple[object, ...], out: object) -> None:
            if is_linear_map(layer) and name not in other:
                (graph.affine.add if _gave_affine(layer, given, out) else other.add)(name)
                graph.affine.difference_update(other)
            for tensor in tensors_of(out):
                if tensor.grad_fn is not None:
                    graph.outputs[tensor.grad_fn] = name

        return hook

    handles = [layer.register_forward_hook(record(name)) for name, layer in module.named_modules() if _is_layer(layer)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gave_affine(layer: LinearMap, given: tuple[object, ...], out: object) -> bool:
    """Tells whether a call gave W x + b: a class derived from a linear map, or a hook, may compute anything."""
    if not given or not isinstance(given[0], Tensor) or not isinstance(out, Tensor):
        return False
    with torch.no_grad():
        x, weight, bias = given[0], layer.weight, layer.bias
        try:
            channel = x.ndim - max(
                weight.ndim - 1, 1
            )  # a convolution has its inputs in the dimension before the pixels
            expected = functional.linear(x.movedim(channel, -1), weight.flatten(1), bias).movedim(-1, channel)
        except RuntimeError:  # such as a weight that is packed
            return False
        if expected.shape != out.shape:
            return False
        bound = 1e3 * torch.finfo(out.dtype).eps * expected.abs().max()
        return bool(((out - expected).abs() <= bound).all())


def _is_layer(module: nn.Module) -> bool:
    """Tells whether a module uses its parameters itself: attention calls no layer within.

    A fixed scale or norm, whose weights are vectors, is no layer but a function.
    """
    if isinstance(module, nn.MultiheadAttention) or is_linear_map(module):
        return True
    own = list(module.parameters())
    return next(module.children(), None) is None and any(p.requires_grad or p.ndim > 1 for p in own)


def _ends(
    start: Sequence[Node | None], outputs: Mapping[Node, str], past: bool = False
) -> tuple[list[Node], list[Node]]:
    """Walks the graph back and returns the outputs of layers, and the parameters, that are met.

    Args:
        start: Nodes to start from.
        outputs: Name of the layer of each output.
        past: Whether the walk goes on behind the outputs of layers.
    """
    stack, seen, found, leaves = [node for node in start if node is not None], set[Node](), [], []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name() == LEAF:
            leaves.append(node)
        if node in outputs:
            found.append(node)
            if not past:
                continue
        stack += _before(node)
    return found, leaves


def _before(node: Node) -> list[Node]:
    return [before for before, _ in node.next_functions if before is not None]
