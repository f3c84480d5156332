"""The linear layer whose parameters are the attributed ones, and the losses as functions of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, batch_size, slice_batch, tensors_of, times_factors, without_ids
from ifloo.objective.forms import map_tensors
from ifloo.objective.functional import FunctionalLosses
from ifloo.objective.logits_layer import LinearMap, is_linear_map
from ifloo.objective.singles import Singles

ResultT = TypeVar("ResultT")
OutputsOf: TypeAlias = Callable[[Tensor], Tensor]  # inputs of the layer [..., t, d] -> [..., t, c]
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative tolerance between two ways to compute the same losses


@dataclass(frozen=True)
class HeadLayer:
    """The layer z = W x + b with θ = (W, b), or θ = W, and inputs x that do not depend on θ.

    The rest of the module is fixed. A sample may pass the layer at several positions (tokens, pixels of a convolution
    of one pixel): inputs are `[b, t, d]`, outputs `[b, t, c]`. Where samples come one by one, those with fewer
    positions than others are filled up with zeros.

    Attributes:
        losses: Losses ℓ and penalty R of the module as functions of the parameters of this layer.
        name: Name of the layer within the module.
        linear: The layer itself.
        with_bias: Whether b is attributed too.
    """

    losses: FunctionalLosses
    name: str
    linear: LinearMap
    with_bias: bool

    @classmethod
    def of(cls, losses: FunctionalLosses) -> HeadLayer:
        """Finds the layer whose weight (and bias) are the attributed parameters.

        Raises:
            InputError: The parameters are not those of one linear layer, or another module shares its weight.
        """
        layers = {n: m for n, m in losses.module.named_modules(remove_duplicate=False) if is_linear_map(m)}
        names = set(losses.space.names)
        for name, layer in layers.items():
            prefix = f"{name}." if name else ""
            if names in ({f"{prefix}weight"}, {f"{prefix}weight", f"{prefix}bias"}):
                _refuse_shared(losses.module, layer, name)
                return cls(losses, name, layer, f"{prefix}bias" in names)
        raise InputError(_not_one_layer(losses.space.names, list(layers)))

    @property
    def columns(self) -> int:
        """d, the number of inputs, including the constant 1 of the bias."""
        return self.linear.weight.shape[1] + self.with_bias

    @property
    def classes(self) -> int:
        """c, the number of outputs."""
        return self.linear.weight.shape[0]

    def matrices(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k c d"]:
        """Converts flat vectors to matrices of the shape of W, with the bias as last column."""
        named = self.losses.space.unflatten(V)
        weight = named[self._name("weight")].flatten(2)
        return torch.cat([weight, named[self._name("bias")].unsqueeze(-1)], -1) if self.with_bias else weight

    def flat(self, M: Float[Tensor, "k c d"]) -> Float[Tensor, "k p"]:
        """Converts matrices to flat vectors; the inverse of `matrices`."""
        if not self.with_bias:
            return M.flatten(1)
        return self.losses.space.flatten({self._name("weight"): M[..., :-1], self._name("bias"): M[..., -1]}, 1)

    def outputs(self, theta: Float[Tensor, " p"], inputs: Float[Tensor, "*b t d"]) -> Float[Tensor, "*b t c"]:
        """Returns the outputs z for these inputs, at any weights θ."""
        z = inputs @ self.matrices(theta.unsqueeze(0))[0].T
        fixed_bias = self.linear.bias
        return z if fixed_bias is None or self.with_bias else z + fixed_bias.detach()

    def together(self, batch: Batch) -> bool:
        """Tells whether the samples of a batch pass the layer in one call, not each in a training step of its own."""
        return not self.losses.contract.one_by_one and not isinstance(without_ids(batch), Singles)

    def passed(
        self, theta: Float[Tensor, " p"], batch: Batch, outputs_of: OutputsOf
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b t d"]]:
        """Runs a batch in one call, with other outputs in place of those of the layer.

        Args:
            theta: Weights of the layer; they have no effect unless the module uses them elsewhere too.
            batch: Samples.
            outputs_of: Function from the inputs of the layer to the outputs to use.

        Returns:
            ℓ of each sample, and the inputs of the layer, with a last column of ones if b is attributed.

        Raises:
            InputError: The layer is not called exactly once, or not with one row (or several positions) per sample.
        """
        b = batch_size(batch)
        calls = _Calls(self, lambda rows: rows.unflatten(0, (b, -1)) if len(rows) % b == 0 else rows, outputs_of)
        with _replaced_forward(self.linear, calls.forward):
            losses = self.losses.sample_losses(theta, batch)
        return losses, calls.inputs(b)

    def passed_alone(
        self, theta: Float[Tensor, " p"], single: Batch, outputs_of: OutputsOf
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "t d"]]:
        """Runs a batch of one, as `passed` runs a batch; whatever passes the layer belongs to the one sample."""
        calls = _Calls(self, lambda rows: rows, outputs_of)
        with _replaced_forward(self.linear, calls.forward):
            loss = self.losses.single_loss(theta, single)
        return loss, calls.inputs(None)

    def inputs(self, theta: Float[Tensor, " p"], batch: Batch) -> Float[Tensor, "b t d"]:
        """Returns the inputs of the layer; raises the errors of `passed`.

        The inputs have a last column of ones if b is attributed.
        """

        def alone(single: Batch) -> Tensor:
            return self.passed_alone(theta, single, lambda x: self.outputs(theta, x))[1]

        with torch.no_grad():
            if self.together(batch):
                return self.passed(theta, batch, lambda x: self.outputs(theta, x))[1]
            inner = without_ids(batch)
            if isinstance(inner, Singles):
                return filled_up([alone(one) for one in inner.batches])
            return over_singles(alone, inner)

    def positions(self, theta: Float[Tensor, " p"], batch: Batch) -> int:
        """Returns t of the first sample of a batch."""
        return self.inputs(theta, slice_batch(batch, slice(0, 1))).shape[1]

    def losses_of(
        self, theta: Float[Tensor, " p"], outputs: Float[Tensor, "b t c"], batch: Batch
    ) -> Float[Tensor, " b"]:
        """Returns ℓ of each sample with these outputs in place of those of the layer.

        Args:
            theta: Weights of the layer; they have no effect unless the module uses them elsewhere too.
            outputs: Outputs z to use.
            batch: Samples.
        """

        def loss(single: Batch, z: Tensor) -> Tensor:
            return self.passed_alone(theta, single, lambda inputs: z[: len(inputs)])[0]  # without what fills it up

        if self.together(batch):
            return self.passed(theta, batch, lambda _: outputs)[0]
        inner = without_ids(batch)
        if isinstance(inner, Singles):
            losses = torch.stack([loss(one, z) for one, z in zip(inner.batches, outputs, strict=True)])
        else:
            losses = over_singles(loss, inner, outputs)
        return times_factors(losses, batch)

    def _name(self, parameter: str) -> str:
        return f"{self.name}.{parameter}" if self.name else parameter


class _Calls:
    """The calls of a layer in one forward pass, with other outputs in place of its own."""

    def __init__(self, head: HeadLayer, by_sample: OutputsOf, outputs_of: OutputsOf) -> None:
        """Starts without a call; `by_sample` gives rows `[b·t, d]` the form that `outputs_of` takes."""
        self._head, self._by_sample, self._outputs_of = head, by_sample, outputs_of
        self._shapes: list[list[int]] = []
        self._leading: list[int] = []
        self._rows: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        head = self._head
        # A convolution has its inputs in the dimension before the pixels.
        channel = x.ndim - head.linear.weight.ndim + 1 if head.linear.weight.ndim > 2 else x.ndim - 1
        last = x.detach().movedim(channel, -1)
        rows = last.reshape(-1, last.shape[-1]).to(head.linear.weight.dtype)
        if head.with_bias:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], -1)
        rows = self._by_sample(rows)
        self._shapes.append(list(x.shape))
        self._leading.append(last.shape[0])
        self._rows.append(rows)
        z = self._outputs_of(rows)
        return z.reshape(*last.shape[:-1], head.classes).movedim(-1, channel)

    def inputs(self, b: int | None) -> Tensor:
        """Returns the inputs of the one call.

        Args:
            b: Number of samples that passed the layer together; None for one sample alone.

        Raises:
            InputError: There was no call or more than one, or not one row (or several positions) for each sample.
        """
        if len(self._rows) == 1 and (b is None or (self._leading[0] == b and len(self._shapes[0]) > 1)):
            return self._rows[0]
        raise InputError(
            f"Layer {self._head.name!r} must be passed once with one row (or several positions) for each of the "
            f"{b or 1} samples; it was given inputs of shapes {self._shapes}.\n"
            "  Use curvature Hessian (or GaussNewton), which take any model."
        )


def over_singles(function: Callable[..., ResultT], batch: Batch, *rows: Tensor) -> ResultT:
    """Runs a function of each sample as a batch of one, and of one entry of each of `rows`, by `torch.func.vmap`."""
    parts = tuple(x for x in tensors_of(batch) if x.ndim)

    def one(*given: Tensor) -> ResultT:
        own = iter(given[len(rows) :])
        return function(map_tensors(lambda x: next(own).unsqueeze(0) if x.ndim else x, batch), *given[: len(rows)])

    found: ResultT = vmap(one, randomness="different")(*rows, *parts)
    return found


def filled_up(rows: list[Tensor]) -> Tensor:
    """Stacks tensors `[t_i, ...]` to `[b, t, ...]` with zeros where one has fewer positions than the others."""
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


@contextmanager
def _replaced_forward(layer: LinearMap, forward: Callable[[Tensor], Tensor]) -> Generator[None, None, None]:
    """Replaces the forward pass of a layer; a hook would still compute the layer's own product."""
    before = layer.forward
    layer.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del layer.forward
        if layer.forward != before:  # an attribute of this layer, not of its class
            layer.forward = before  # type: ignore[method-assign]


def _refuse_shared(module: nn.Module, layer: LinearMap, name: str) -> None:
    users = [
        n
        for n, m in module.named_modules(remove_duplicate=False)
        if any(p is layer.weight for p in m._parameters.values())
    ]
    if len(users) > 1:
        raise InputError(
            f"The weight of layer {name!r} is also that of {[u for u in users if u != name]}: the layer's input "
            "depends on it, so that the loss is not that of a linear head.\n"
            "  Use curvature Hessian or GaussNewton, or attribute other parameters."
        )


def _not_one_layer(names: tuple[str, ...], layers: list[str]) -> str:
    example = f"{layers[-1] if layers else 'head'}.*"
    return (
        f"A linear head is the weight (and bias) of one nn.Linear; attributed are {list(names)[:5]}"
        f"{' and others' if len(names) > 5 else ''}.\n"
        f"  Linear layers here: {layers[-5:]}. Attribute one of them (attribution.parameters: ['{example}']), or use "
        "curvature Hessian or GaussNewton for all."
    )
