"""Plain texts in place of those that torch gives where an operation of a model lacks a rule for derivatives or vmap."""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager

SLOW_RULE = "There is a performance drop because we have not yet implemented the batching rule"
LONGEST = 400  # characters of an error's text that are shown

NO_DERIVATIVE = "has no derivative of this order"
_VALUES = (
    "the pass needs values of tensors (`.item()`, `float(...)`, `.numpy()`, `if` on a tensor), which torch.func lacks"
)
_KEPT = "the pass uses a tensor kept from an earlier pass (in a metric, a list or a buffer)"
_IN_PLACE = "the pass changes a tensor in place (a buffer, a metric, a counter), which vmap cannot do"
_FUNCTION = "a custom autograd.Function has no rule in torch.func"
_HOOK = "a tensor hook has no derivative in forward mode"
_SPARSE = "no rule for sparse tensors (sparse gradients come from nn.Embedding(sparse=True))"

# Patterns of torch's texts, and what they mean to the author of a model; groups are filled in.
_MEANINGS = (
    (r"calling \.item\(\) on a Tensor|data-dependent control flow", _VALUES),
    (r"Cannot access (?:data pointer|storage) of|Can't call numpy\(\) on", _VALUES),
    (r"can (?:output|support) dynamic shape\.(?: Attempted to vmap over aten::_?(\w+))?", None),
    (r"tensor may have escaped from inside a function|internal functorch error", _KEPT),
    (r"Can't detach views in-place|is not possible because there exists a Tensor", _IN_PLACE),
    (r"doesn't match the broadcast shape|Batch norm got a batched tensor as input while the running", _IN_PLACE),
    (r"called random operation while in randomness error mode", "the pass draws random numbers"),
    (r"Batching rule not implemented for aten::(\w+)", "torch.func.vmap has no rule for {}"),
    (r"Trying to use forward AD with (\w+) that does not support it", "{} has no derivative in forward mode"),
    (r"derivative for '?(?:aten::)?(\w+)'? is not implemented", f"{{}} {NO_DERIVATIVE}"),
    (r"saved tensor hooks", "activation checkpointing has no rule in torch.func"),
    (r"must override the setup_context staticmethod", _FUNCTION),
    (
        r"autograd\.Function.*(?:vmap support|generate_vmap_rule)",
        "a custom autograd.Function has no rule in torch.func",
    ),
    (
        r"cannot register a hook on a tensor that doesn't require gradient",
        "a tensor hook has no derivative in forward mode",
    ),
    (r"is not implemented for sparse tensors|from the 'Sparse\w+' backend", _SPARSE),
)


def meaning_of(text: str) -> str | None:
    """Returns what a text of torch means to the author of a model; None for a text that is plain already."""
    for pattern, meaning in _MEANINGS:
        if found := re.search(pattern, text, re.DOTALL):
            names = [name.strip("_").rstrip("2") for name in found.groups() if name]
            if meaning is None:
                operation = f" ({names[0]})" if names else " (a boolean mask as index)"
                return f"the shape of a result depends on the values of tensors{operation}, which vmap cannot do"
            return meaning.format(*names)
    return None


def shortened(text: str) -> str:
    """Returns a text on one line, without the tables that torch's dispatcher appends, cut where it is long."""
    line = " ".join(text.partition("This could be because the operator doesn't exist")[0].split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST].rstrip()} ..."


@contextmanager
def without_slow_rules() -> Generator[None, None, None]:
    """Ignores torch's warning of operations that vmap runs one by one, in trials that decide whether vmap is used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=SLOW_RULE)
        yield
