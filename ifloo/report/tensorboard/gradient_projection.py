"""Random projection of sample gradients to a few dimensions, without storing a projection matrix."""

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
from ifloo.objective.batches import sample_ids, to_device
from ifloo.objective.functional import FunctionalLosses, Path
from ifloo.objective.loaders import rule_behind, separately, unwrap_loader
from ifloo.params import ParamSpace

MOST_AT_ONCE = 256  # largest number of samples in one batch
BYTES_AT_ONCE = 64 << 20  # largest size of a batch's gradients; projecting them takes as much again


class Sketch:
    """Count sketch S: [p] -> [d]: each parameter is added with a random sign to one of d sums of nearly equal size.

    The expectation of (Sx)·(Sy) over seeds is x·y, with a variance of at most (‖x‖²‖y‖² + (x·y)²)/d; if p <= d the
    products are exact.

    Source: Charikar, Chen & Farach-Colton 2002 (Finding frequent items in data streams); Weinberger et al. 2009,
    arXiv:0902.2206.
    """

    def __init__(self, size: int, dimensions: int, seed: int) -> None:
        """Draws signs and an order for `size` parameters; equal seeds give equal sketches."""
        generator = torch.Generator().manual_seed(seed)
        self.dimensions = dimensions
        self.order = torch.randperm(size, generator=generator)
        self.signs = torch.randint(2, (size,), generator=generator) * 2 - 1

    def __call__(self, V: Float[Tensor, "k p"]) -> Float[Tensor, "k d"]:
        """Computes S v of each row v."""
        mixed = (V * self.signs.to(V))[:, self.order.to(V.device)]
        width = -(-V.shape[1] // self.dimensions)
        return F.pad(mixed, (0, width * self.dimensions - V.shape[1])).view(len(V), width, self.dimensions).sum(1)


@dataclass(frozen=True)
class SampleGradients:
    """∇ℓ_i(θ̂) of chosen training samples, projected block by block, so that n x p numbers are never in memory.

    Attributes:
        module: Module that meets the contract; its weights are θ̂.
        loader: Loader of all training samples.
        parameters: Shell-style patterns of the parameters that θ consists of.
        dimensions: Dimension d of the projected gradients.
        seed: Random seed of the projection.
    """

    module: nn.Module
    loader: DataLoader[Batch]
    parameters: tuple[str, ...] = ("*",)
    dimensions: int = 64
    seed: int = 0

    @property
    def size(self) -> int:
        """Number p of attributed parameters."""
        return ParamSpace.of(self.module, self.parameters).size

    def projected(self, positions: Int[Tensor, " k"], ids: Int[Tensor, " k"]) -> Float[Tensor, "k d"]:
        """Computes S ∇ℓ_i of the samples at these positions of the data set.

        Args:
            positions: Positions of the samples in the data set.
            ids: Expected ids of these samples.

        Raises:
            InputError: If the samples at these positions have other ids, so that the scores are of other data.
        """
        space = ParamSpace.of(self.module, self.parameters)
        losses, sketch = FunctionalLosses(self.module, space), Sketch(space.size, self.dimensions, self.seed)
        if losses.contract.one_by_one:  # the author's training step, which not every module can run under vmap
            losses = FunctionalLosses(self.module, space, Path.LOOP)
        at_once = min(MOST_AT_ONCE, max(1, BYTES_AT_ONCE // (space.size * space.dtype.itemsize)))
        dataset, collate = unwrap_loader(self.loader)
        some = Subset(dataset, positions.tolist())  # type: ignore[arg-type, var-annotated]  # of any set with items
        chosen: DataLoader[Batch] = DataLoader(some, batch_size=at_once, collate_fn=collate)
        if losses.path is Path.LOOP:
            chosen = separately(chosen, with_whole=False)
        theta, rule, parts = losses.theta(), rule_behind(self.loader), []
        with torch.no_grad(), scoring(self.module):
            for raw, expected, at in zip(chosen, ids.split(at_once), positions.split(at_once), strict=True):
                batch = to_device(raw, space.device, space.dtype)
                _refuse_others(sample_ids(batch) if rule.source == "auto" else rule.of(batch, at), expected)
                parts.append(sketch(sample_gradients(losses, theta, batch)).cpu())
        return torch.cat(parts)


def _refuse_others(found: Tensor | None, expected: Tensor) -> None:
    if found is not None and not torch.equal(found.cpu(), expected):
        raise InputError(
            f"The training data hold ids {found.tolist()[:5]} where the scores are of {expected.tolist()[:5]}.\n"
            "  Give the data that were scored, or run `ifloo influence` again with --overwrite."
        )
