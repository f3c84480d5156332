"""Names of parameters, and the one vector format of the project: flat vectors `[p]` and rows of them `[k, p]`.

This is the only file that converts between dicts of named tensors and flat vectors.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ifloo.errors import InputError

DTYPES: Mapping[str, torch.dtype] = {"float64": torch.float64, "float32": torch.float32}  # by their names in settings


@runtime_checkable
class Wrapper(Protocol):
    """A module that wraps a user's module.

    Attributes:
        wraps: Prefix of the wrapper's parameter names, such as `model.`.
    """

    wraps: str


@dataclass(frozen=True)
class ParamSpace:
    """The attributed parameters of a module, in a fixed order.

    Attributes:
        names: Parameter names as in `named_parameters` (tied weights once).
        shapes: Shape of each parameter.
        dtype: Common dtype of the parameters.
        device: Common device of the parameters.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, module: nn.Module, patterns: Sequence[str] = ("*",)) -> ParamSpace:
        """Selects the trainable parameters of `module` whose names match any of the shell-style `patterns`.

        Raises:
            InputError: No trainable parameter matches, a pattern names a tied parameter by another name than its own,
                or the parameters differ in dtype or device.
        """
        trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
        chosen = {n: p for n, p in trainable.items() if any(matches(module, n, x) for x in patterns)}
        _refuse_second_names(module, patterns, chosen)
        if not chosen:
            raise InputError(_nothing_matches(patterns, [author_name(module, n) for n in trainable]))
        kinds = {(p.dtype, p.device) for p in chosen.values()}
        if len(kinds) > 1:
            raise InputError(
                f"The attributed parameters must share one dtype and one device, got {sorted(map(str, kinds))}.\n"
                "  Cast the module to one dtype (module.double()) and move it to one device before scoring."
            )
        ((dtype, device),) = kinds
        return cls(tuple(chosen), tuple(p.shape for p in chosen.values()), dtype, device)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(math.prod(s) for s in self.shapes)

    @property
    def size(self) -> int:
        """p, the number of entries of all attributed parameters."""
        return sum(self.sizes)

    def flatten(self, named: Mapping[str, Tensor], batch_dims: int = 0) -> Float[Tensor, "*k p"]:
        """Converts named tensors `[*k, *shape]` to flat vectors; `batch_dims` is the number of leading dimensions k."""
        return torch.cat([named[n].reshape(*named[n].shape[:batch_dims], -1) for n in self.names], dim=-1)

    def unflatten(self, flat: Float[Tensor, "*k p"]) -> dict[str, Tensor]:
        """Converts flat vectors to named tensors `[*k, *shape]`, which are views, not copies."""
        parts = flat.split(self.sizes, dim=-1)
        return {n: x.reshape((*flat.shape[:-1], *s)) for n, x, s in zip(self.names, parts, self.shapes, strict=True)}

    def values_of(self, module: nn.Module) -> Float[Tensor, " p"]:
        """Returns a detached flat copy of the module's current values."""
        named = dict(module.named_parameters())
        return self.flatten({n: named[n].detach() for n in self.names}).clone()

    @torch.no_grad()
    def write_to(self, module: nn.Module, flat: Float[Tensor, " p"]) -> None:
        """Copies flat values into the module's parameters, in place."""
        named = dict(module.named_parameters())
        for name, value in self.unflatten(flat).items():
            named[name].copy_(value)


def prefix_of(module: object) -> str:
    """Returns the prefix that wrapping adds to the names of parameters; empty for a module that wraps no other."""
    if (inner := uncompiled(module)) is not module:
        return f"_orig_mod.{prefix_of(inner)}"
    return module.wraps if isinstance(module, Wrapper) else ""


def uncompiled(module: object) -> object:
    """Returns the module inside the result of `torch.compile`; any other object is returned as it is."""
    # Importing torch._dynamo takes seconds; where it is not imported yet, nothing is compiled.
    dynamo = sys.modules.get("torch._dynamo")
    return module._orig_mod if dynamo and isinstance(module, dynamo.OptimizedModule) else module


def author_name(module: nn.Module, name: str) -> str:
    """Returns the name of a parameter in the author's own module, without the prefix of a wrapper."""
    return name.removeprefix(prefix_of(module))


def tied_name(module: nn.Module, name: str) -> str | None:
    """Returns another name of the same parameter, the one of `named_parameters` first; None if it has no other."""
    names = dict(module.named_parameters(remove_duplicate=False))
    others = [n for n, p in names.items() if p is names[name] and n != name]
    return others[0] if others else None


def matches(module: nn.Module, name: str, pattern: str) -> bool:
    """Tells whether a parameter's full name or its `author_name` matches a shell-style pattern."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(author_name(module, name), pattern)


def _refuse_second_names(module: nn.Module, patterns: Sequence[str], chosen: Mapping[str, Tensor]) -> None:
    """Checks that no pattern matches only a second name of a tied parameter: it would take what is left of a layer.

    Raises:
        InputError: A pattern does.
    """
    owners = {p: n for n, p in module.named_parameters()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owner = owners[parameter]
        left_out = name != owner and parameter.requires_grad and owner not in chosen
        if left_out and any(matches(module, name, x) for x in patterns):
            raise InputError(_second_name(author_name(module, name), author_name(module, owner), patterns))


def _second_name(name: str, owner: str, patterns: Sequence[str]) -> str:
    return (
        f"{name}, which {list(patterns)} match, is the same tensor as {owner} (tied weights), and is attributed under "
        f"that name.\n  Give {[*patterns, owner]} to attribute it in all its uses, or patterns that match neither."
    )


def _nothing_matches(patterns: Sequence[str], names: list[str]) -> str:
    if not names:
        return "The module has no trainable parameter (requires_grad=True): there is nothing to attribute."
    near = [m for x in patterns for m in difflib.get_close_matches(x, names, n=3, cutoff=0.3)] or names[:5]
    return (
        f"No trainable parameter matches {list(patterns)}.\n"
        f"  The nearest of the {len(names)} names: {list(dict.fromkeys(near))}."
    )
