"""A linear layer whose parameters are all that is attributed: found, and its losses as functions of its outputs."""

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

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}  # two ways to the same losses may differ by this much, relatively


@dataclass(frozen=True)
class HeadLayer:
    """z = W x + b with θ = (W, b), or W alone, on inputs x that do not depend on θ; the rest of the module is fixed.

    A sample may pass the layer at several positions (tokens): inputs are `[b, t, d]`, outputs `[b, t, c]`.

    Attributes:
        losses: ℓ and R of the module; its parameter space is this layer.
        name: of the layer within the module.
        layer: it.
        with_bias: whether b is attributed too.
    """

    losses: FunctionalLosses
    name: str
    layer: nn.Linear
    with_bias: bool

    @classmethod
    def of(cls, losses: FunctionalLosses) -> HeadLayer:
        """The layer whose weight (and bias) are the attributed parameters.

        Raises:
            InputError: they are not those of one linear layer, another module shares its weight, or the losses are
                of a training step run on batches of one.
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
        """Inputs, the constant 1 of the bias included."""
        return self.layer.in_features + self.with_bias

    @property
    def classes(self) -> int:
        """c, outputs."""
        return self.layer.out_features

    def matrices(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k c d"]:
        """Flat vectors as matrices like W, the bias as last column."""
        named = self.losses.space.unflatten(V)
        weight = named[self._name("weight")]
        return torch.cat([weight, named[self._name("bias")].unsqueeze(-1)], -1) if self.with_bias else weight

    def flat(self, M: Float[Tensor, "k c d"]) -> Float[Tensor, "k p"]:
        """The inverse of `matrices`."""
        if not self.with_bias:
            return M.flatten(1)
        return self.losses.space.flatten({self._name("weight"): M[..., :-1], self._name("bias"): M[..., -1]}, 1)

    def inputs(self, theta: Float[Tensor, " p"], batch: Batch) -> tuple[Float[Tensor, "b t d"], torch.Size]:
        """What the layer receives, with a last column of ones where b is attributed, and the shape of its positions.

        Raises:
            InputError: the layer is not passed exactly once.
        """
        seen: list[Tensor] = []
        run = self.layer.forward

        def watched(x: Tensor) -> Tensor:
            seen.append(x.detach())
            return run(x)

        with torch.no_grad(), scoring(self.losses.module), _replaced(self.layer, watched):
            b = len(self.losses.sample_losses(theta, batch))
        if len(seen) != 1 or seen[0].ndim < 2 or seen[0].shape[0] != b:
            raise InputError(self._not_passed_once([list(x.shape) for x in seen], b))
        positions = seen[0].shape[1:-1]
        x = seen[0].reshape(b, -1, self.layer.in_features).to(theta.dtype)
        return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1) if self.with_bias else x, positions

    def outputs(self, theta: Float[Tensor, " p"], inputs: Float[Tensor, "b t d"]) -> Float[Tensor, "b t c"]:
        """Z of these inputs, at θ or other weights."""
        z = inputs @ self.matrices(theta.unsqueeze(0))[0].T
        fixed = self.layer.bias
        return z if fixed is None or self.with_bias else z + fixed.detach()

    def losses_of(
        self, theta: Float[Tensor, " p"], outputs: Float[Tensor, "b t c"], batch: Batch, positions: torch.Size
    ) -> Float[Tensor, " b"]:
        """ℓ of each sample with the layer's output put in its place; everything else of the module at its values.

        Args:
            theta: weights the module runs with; they do not matter where the layer is all that uses them.
            outputs: z.
            batch: the samples.
            positions: shape of the positions in the layer's own output, as `inputs` gave it.
        """
        shape = (len(outputs), *positions, self.classes)
        with _replaced(self.layer, lambda _: outputs.reshape(shape)):
            return self.losses.sample_losses(theta, batch)

    def _name(self, parameter: str) -> str:
        return f"{self.name}.{parameter}" if self.name else parameter

    def _not_passed_once(self, shapes: list[list[int]], b: int) -> str:
        return (
            f"Layer {self.name!r} must be passed once with one row (or several positions) for each of the {b} samples; "
            f"it was given inputs of shapes {shapes}.\n  Use curvature Hessian (or GaussNewton), which take any model."
        )


@contextmanager
def _replaced(layer: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Generator[None, None, None]:
    """Another forward pass for one layer: a hook would pay for the product that it throws away."""
    before = layer.forward
    layer.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del layer.forward
        if layer.forward != before:  # it was of this one layer and not of its class
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
