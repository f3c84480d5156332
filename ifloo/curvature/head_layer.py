"""The linear layer whose parameters are the attributed ones, and the losses as functions of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ifloo.errors import InputError
from ifloo.objective.batches import Batch
from ifloo.objective.functional import FunctionalLosses, scoring

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative tolerance between two ways to compute the same losses


@dataclass(frozen=True)
class HeadLayer:
    """The layer z = W x + b with θ = (W, b), or θ = W, and inputs x that do not depend on θ.

    The rest of the module is fixed. A sample may pass the layer at several positions (tokens): inputs are `[b, t, d]`,
    outputs `[b, t, c]`.

    Attributes:
        losses: Losses ℓ and penalty R of the module as functions of the parameters of this layer.
        name: Name of the layer within the module.
        linear: The layer itself.
        with_bias: Whether b is attributed too.
    """

    losses: FunctionalLosses
    name: str
    linear: nn.Linear
    with_bias: bool

    @classmethod
    def of(cls, losses: FunctionalLosses) -> HeadLayer:
        """Finds the layer whose weight (and bias) are the attributed parameters.

        Raises:
            InputError: The parameters are not those of one linear layer, another module shares its weight, or the
                losses come from a training step on batches of one.
        """
        if losses.contract.one_by_one:
            raise InputError(
                "A linear head needs the layer's inputs for a whole batch, and this module's losses come from its "
                "training_step on batches of one.\n"
                "  Give the losses as a function of your own (sample_losses), or use curvature Hessian."
            )
        layers = {n: m for n, m in losses.module.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear)}
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
        return self.linear.in_features + self.with_bias

    @property
    def classes(self) -> int:
        """c, the number of outputs."""
        return self.linear.out_features

    def matrices(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k c d"]:
        """Converts flat vectors to matrices of the shape of W, with the bias as last column."""
        named = self.losses.space.unflatten(V)
        weight = named[self._name("weight")]
        return torch.cat([weight, named[self._name("bias")].unsqueeze(-1)], -1) if self.with_bias else weight

    def flat(self, M: Float[Tensor, "k c d"]) -> Float[Tensor, "k p"]:
        """Converts matrices to flat vectors; the inverse of `matrices`."""
        if not self.with_bias:
            return M.flatten(1)
        return self.losses.space.flatten({self._name("weight"): M[..., :-1], self._name("bias"): M[..., -1]}, 1)

    def inputs(self, theta: Float[Tensor, " p"], batch: Batch) -> tuple[Float[Tensor, "b t d"], torch.Size]:
        """Returns the inputs of the layer and the shape of its positions.

        The inputs have a last column of ones if b is attributed.

        Raises:
            InputError: The layer is not called exactly once, or not with one row (or several positions) per sample.
        """
        calls: list[Tensor] = []
        forward = self.linear.forward

        def recording(x: Tensor) -> Tensor:
            calls.append(x.detach())
            return forward(x)

        with torch.no_grad(), scoring(self.losses.module), _replaced_forward(self.linear, recording):
            b = len(self.losses.sample_losses(theta, batch))
        if len(calls) != 1 or calls[0].ndim < 2 or calls[0].shape[0] != b:
            raise InputError(self._not_passed_once([list(x.shape) for x in calls], b))
        positions = calls[0].shape[1:-1]
        x = calls[0].reshape(b, -1, self.linear.in_features).to(theta.dtype)
        return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1) if self.with_bias else x, positions

    def outputs(self, theta: Float[Tensor, " p"], inputs: Float[Tensor, "b t d"]) -> Float[Tensor, "b t c"]:
        """Returns the outputs z for these inputs, at any weights θ."""
        z = inputs @ self.matrices(theta.unsqueeze(0))[0].T
        fixed_bias = self.linear.bias
        return z if fixed_bias is None or self.with_bias else z + fixed_bias.detach()

    def losses_of(
        self, theta: Float[Tensor, " p"], outputs: Float[Tensor, "b t c"], batch: Batch, positions: torch.Size
    ) -> Float[Tensor, " b"]:
        """Returns ℓ of each sample with these outputs in place of those of the layer.

        Args:
            theta: Weights of the layer; they have no effect unless the module uses them elsewhere too.
            outputs: Outputs z to use.
            batch: Samples.
            positions: Shape of the positions in the layer's own output, as returned by `inputs`.
        """
        shape = (len(outputs), *positions, self.classes)
        with _replaced_forward(self.linear, lambda _: outputs.reshape(shape)):
            return self.losses.sample_losses(theta, batch)

    def _name(self, parameter: str) -> str:
        return f"{self.name}.{parameter}" if self.name else parameter

    def _not_passed_once(self, shapes: list[list[int]], b: int) -> str:
        return (
            f"Layer {self.name!r} must be passed once with one row (or several positions) for each of the {b} samples; "
            f"it was given inputs of shapes {shapes}.\n  Use curvature Hessian (or GaussNewton), which take any model."
        )


@contextmanager
def _replaced_forward(layer: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Generator[None, None, None]:
    """Replaces the forward pass of a layer; a hook would still compute the layer's own product."""
    before = layer.forward
    layer.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del layer.forward
        if layer.forward != before:  # an attribute of this layer, not of its class
            layer.forward = before  # type: ignore[method-assign]


def _refuse_shared(module: nn.Module, layer: nn.Linear, name: str) -> None:
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
