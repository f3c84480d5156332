"""Gradients of samples at a few dimensions, by a random projection that is never written down as a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from ifloo.errors import InputError
from ifloo.gradients import sample_gradients
from ifloo.objective import Batch, scoring
from ifloo.objective.batches import moved, sample_ids
from ifloo.objective.functional import FunctionalLosses
from ifloo.objective.loaders import as_given
from ifloo.params import ParamSpace

MOST_AT_ONCE = 256  # samples in one batch
BYTES_AT_ONCE = 64 << 20  # of gradients, and as much again while they are projected


class Sketch:
    """S: [p] -> [d], each parameter with a random sign into one of d sums, of equal size but for one parameter.

    (Sx)·(Sy) is x·y on average over seeds, with a variance of at most (‖x‖²‖y‖² + (x·y)²)/d; where p <= d nothing is
    lost.

    Source: Charikar, Chen & Farach-Colton 2002 (Finding frequent items in data streams); Weinberger et al. 2009,
    arXiv:0902.2206.
    """

    def __init__(self, size: int, dimensions: int, seed: int) -> None:
        """Draws signs and places for `size` parameters; the same seed draws the same."""
        generator = torch.Generator().manual_seed(seed)
        self.dimensions = dimensions
        self.order = torch.randperm(size, generator=generator)
        self.signs = torch.randint(2, (size,), generator=generator) * 2 - 1

    def __call__(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k d"]:
        """S v of each row."""
        mixed = (V * self.signs.to(V))[:, self.order.to(V.device)]
        width = -(-V.shape[1] // self.dimensions)
        return F.pad(mixed, (0, width * self.dimensions - V.shape[1])).view(len(V), width, self.dimensions).sum(1)


@dataclass(frozen=True)
class SampleGradients:
    """∇ℓ_i(θ̂) of chosen training samples, projected as they are formed: memory for a block of them, never n x p.

    Attributes:
        module: meets the contract; its weights are θ̂.
        loader: of all training samples.
        parameters: shell-style patterns of the parameters θ consists of.
        dimensions: d, kept of each gradient.
        seed: of the projection.
    """

    module: nn.Module
    loader: DataLoader[Batch]
    parameters: tuple[str, ...] = ("*",)
    dimensions: int = 64
    seed: int = 0

    @property
    def size(self) -> int:
        """p, the number of attributed parameters."""
        return ParamSpace.of(self.module, self.parameters).size

    def projected(self, positions: Int[Tensor, " k"], ids: Int[Tensor, " k"]) -> Float[Tensor, "k d"]:
        """S ∇ℓ_i of the samples at these positions of the data set.

        Raises:
            InputError: the samples there carry other ids: the scores are of other data.
        """
        space = ParamSpace.of(self.module, self.parameters)
        losses, sketch = FunctionalLosses(self.module, space), Sketch(space.size, self.dimensions, self.seed)
        at_once = min(MOST_AT_ONCE, max(1, BYTES_AT_ONCE // (space.size * space.dtype.itemsize)))
        dataset, collate = as_given(self.loader)
        some = Subset(dataset, positions.tolist())  # type: ignore[arg-type, var-annotated]  # of any set with items
        chosen = DataLoader(some, batch_size=at_once, collate_fn=collate)
        theta, parts = losses.theta(), []
        with torch.no_grad(), scoring(self.module):
            for raw, expected in zip(chosen, ids.split(at_once), strict=True):
                batch = moved(raw, space.device, space.dtype)
                _refuse_others(sample_ids(batch), expected)
                parts.append(sketch(sample_gradients(losses, theta, batch)).cpu())
        return torch.cat(parts)


def _refuse_others(found: Tensor | None, expected: Tensor) -> None:
    if found is not None and not torch.equal(found.cpu(), expected):
        raise InputError(
            f"The training data hold ids {found.tolist()[:5]} where the scores are of {expected.tolist()[:5]}.\n"
            "  Give the data that were scored, or run `ifloo influence` again with --overwrite."
        )
