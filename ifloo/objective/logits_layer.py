"""The linear map whose output is the logits, found by watching a forward pass: the order of layers tells nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.data import DataLoader
from typing_extensions import TypeIs

from ifloo.errors import InputError, summarise
from ifloo.objective.batches import Batch, slice_batch, to_module, without_ids
from ifloo.objective.functional import scoring
from ifloo.objective.loaders import separately, sequential
from ifloo.objective.plain import recordable, recording
from ifloo.objective.protocol import contract_of
from ifloo.objective.singles import Singles, first_draw
from ifloo.params import author_name, tied_name

LinearMap: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


# Names of the graph's nodes: of a parameter, of its views, and of products that it enters as a matrix.
LEAF = "torch::autograd::AccumulateGrad"
VIEWS = frozenset(
    f"{name}Backward0"
    for name in ("T", "Transpose", "Permute", "View", "Expand", "Unsqueeze", "Squeeze", "ReshapeAlias", "UnsafeView")
)
PRODUCTS = frozenset(
    f"{name}Backward0" for name in ("Addmm", "Mm", "Bmm", "Mv", "Addmv", "Baddbmm", "Linear", "Convolution")
)


class NoLogitsLayerError(InputError):
    """A module has no last layer through which alone its samples could be scored."""


def is_linear_map(layer: nn.Module) -> TypeIs[LinearMap]:
    """Tells whether a layer is z = W x + b at each position: an `nn.Linear`, or a convolution of one pixel."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        unpadded = layer.padding == "valid" or all(p == 0 for p in layer.padding)
        return unpadded and layer.groups == 1 and all(k == 1 for k in (*layer.kernel_size, *layer.stride))
    return isinstance(layer, nn.Linear)


def logits_layer(module: nn.Module, batch: Batch) -> str:
    """Returns the name of the linear map whose output is the logits, as seen in one sample's way to its loss.

    From the loss back, that is the first layer with parameters on every path: its output reaches the loss through
    functions without parameters only. A layer whose output also feeds another such layer (an auxiliary loss of hidden
    activations) is not the last. Layers without trainable weights are left out.

    Args:
        module: Module that states its losses; nothing of it is changed.
        batch: Samples, of which the first is run in evaluation mode.

    Raises:
        NoLogitsLayerError: No such layer exists, several do (several heads), or its weight is that of another layer.
    """
    reached = _reached(module, batch)
    found = {name: layer for name, layer in reached.items() if is_linear_map(layer) and layer.weight.requires_grad}
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
    if (shared := tied_name(module, f"{name}.weight")) is not None:
        raise NoLogitsLayerError(
            f"The weight of the last layer {names[0]} is also {author_name(module, shared)}: its inputs depend on it.\n"
            "  Name other parameters to attribute, or take a method for all of them."
        )
    return name


def first_sample(loader: DataLoader[Batch], module: nn.Module) -> Batch:
    """Returns the first sample of a loader alone, on the device and in the precision of a module."""
    return to_module(next(iter(sequential(separately(loader, with_whole=False), 1, slice(0, 1)))), module)


def _reached(module: nn.Module, batch: Batch) -> dict[str, nn.Module]:
    """Returns the layers with parameters whose outputs reach the loss through functions without parameters only."""
    outputs: dict[Node, str] = {}
    with recording(), scoring(module), _watched(module, outputs):
        loss = _one_loss(module, batch)
    layers = dict(module.named_modules())
    ends = _ends([loss.grad_fn], outputs)
    _refuse_map_without_layer([loss.grad_fn], outputs)
    upstream = set[str]()
    for end in ends:
        upstream |= {outputs[node] for node in _ends(_before(end), outputs, past=True)} - {outputs[end]}
    return {name: layers[name] for name in dict.fromkeys(outputs[end] for end in ends) if name not in upstream}


def _one_loss(module: nn.Module, batch: Batch) -> Tensor:
    inner = without_ids(batch)
    one = inner.batches[0] if isinstance(inner, Singles) else slice_batch(inner, slice(0, 1))
    one = recordable(first_draw(one))
    contract = contract_of(module)
    return contract.single_loss(one) if contract.one_by_one else contract.sample_losses(one).sum()


@contextmanager
def _watched(module: nn.Module, outputs: dict[Node, str]) -> Generator[None, None, None]:
    """Records the place in the graph of what each layer with parameters of its own gives, until exit."""

    def record(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, given: object, out: object) -> None:
            for tensor in _tensors(out):
                if tensor.grad_fn is not None:
                    outputs[tensor.grad_fn] = name

        return hook

    handles = [layer.register_forward_hook(record(name)) for name, layer in module.named_modules() if _is_layer(layer)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_layer(module: nn.Module) -> bool:
    """Tells whether a module uses its parameters itself: attention calls no layer within."""
    if isinstance(module, nn.MultiheadAttention) or is_linear_map(module):
        return True
    return next(module.children(), None) is None and next(module.parameters(), None) is not None


def _tensors(out: object) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, (tuple, list)):
        for item in out:
            yield from _tensors(item)
    elif isinstance(out, Mapping):
        yield from _tensors(list(out.values()))


def _refuse_map_without_layer(start: Sequence[Node | None], outputs: Mapping[Node, str]) -> None:
    """Checks that no matrix product with a bare parameter, such as `F.linear(h, self.W)`, follows the layers.

    Raises:
        NoLogitsLayerError: One does: it gives the logits, and no layer does.
    """
    stack, seen = [node for node in start if node is not None], set[Node]()
    while stack:
        node = stack.pop()
        if node in seen or node in outputs:
            continue
        seen.add(node)
        inputs = [_behind_views(before) for before in _before(node)]
        leaves = [before for before in inputs if before.name() == LEAF]
        if node.name() in PRODUCTS and leaves and len(leaves) < len(inputs):
            raise NoLogitsLayerError(
                f"The logits come from a product with a parameter ({node.name().removesuffix('Backward0')}) that no "
                "layer makes.\n  Name the parameters to attribute, or take a method for all of them."
            )
        stack += _before(node)


def _behind_views(node: Node) -> Node:
    while node.name() in VIEWS and len(_before(node)) == 1:
        (node,) = _before(node)
    return node


def _ends(start: Sequence[Node | None], outputs: dict[Node, str], past: bool = False) -> list[Node]:
    """Walks the graph back and returns the outputs of layers that are met; goes on behind them only if `past`."""
    stack, seen, found = [node for node in start if node is not None], set[Node](), []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in outputs:
            found.append(node)
            if not past:
                continue
        stack += _before(node)
    return found


def _before(node: Node) -> list[Node]:
    return [before for before, _ in node.next_functions if before is not None]
