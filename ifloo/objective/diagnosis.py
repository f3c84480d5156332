"""What can be told of a module by looking at it: no data, no forward pass.

Seen are layers by their class and parameters by what they are. Not seen is what a forward pass calls as a function
(`F.dropout`, `F.scaled_dot_product_attention`, a batch norm written by hand), and whether a layer is used at all: for
those `ifloo.objective.trial` runs the module on a few samples. A layer counts as it stands: one put into evaluation
mode before the fit is trained like that, and is no finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from ifloo.errors import InputError
from ifloo.objective.findings import Finding, Weight, listed
from ifloo.params import ParamSpace, known_as, prefix_of

RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def diagnose(module: nn.Module, parameters: Sequence[str] = ("*",)) -> list[Finding]:
    """All that this file finds.

    Args:
        module: in the modes of its layers in which it is trained.
        parameters: shell-style patterns of those to be attributed.
    """
    return [
        *unattributable(module, parameters),
        *batch_statistics(module),
        *running_statistics(module),
        *random_layers(module),
        *fused_attention(module),
        *tied_parameters(module),
        *frozen_parameters(module),
    ]


def unattributable(module: nn.Module, parameters: Sequence[str]) -> list[Finding]:
    """No parameter matches, or those that do differ in dtype or device."""
    try:
        ParamSpace.of(module, parameters)
    except InputError as error:
        first: dict[str, str] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                kind = str(parameter.dtype).removeprefix("torch.")
                first.setdefault(f"{kind} on {parameter.device}", known_as(module, name))
        kinds = [f"{name} ({kind})" for kind, name in first.items()]
        return [Finding.of_error(error, listed(kinds) if len(kinds) > 1 else "attribution.parameters")]
    return []


def batch_statistics(module: nn.Module) -> list[Finding]:
    """BatchNorm without running statistics: it mixes the samples of a batch in every mode."""
    found = [(n, m) for n, m in _layers(module, nn.modules.batchnorm._BatchNorm) if m.running_mean is None]
    if not found:
        return []
    return [
        Finding(
            f"{_kinds(found)} without running statistics (track_running_stats=False)",
            _paths(module, found),
            "The output of a sample depends on the other samples of its batch in evaluation mode too: its loss is not "
            "its own, and scoring stops at this.",
            "Use nn.GroupNorm or nn.LayerNorm, or keep running statistics, and fit again.",
            Weight.FATAL,
        )
    ]


def running_statistics(module: nn.Module) -> list[Finding]:
    """Running statistics: a layer that is one function in training and another while scoring."""
    found = [
        (n, m) for n, m in _layers(module, nn.modules.batchnorm._NormBase) if m.training and m.running_mean is not None
    ]
    if not found:
        return []
    return [
        Finding(
            f"{_kinds(found)} in training mode",
            _paths(module, found),
            "Training normalises by the statistics of the batch (InstanceNorm: of the sample), scoring by the running "
            "ones, held constant: J is then another function than the one trained, |grad J| need not be small at its "
            "end, and what a refit does to the running statistics is no part of the scores.",
            "Use nn.GroupNorm or nn.LayerNorm, or put these layers into evaluation mode before the fit (.eval() in "
            "__init__), and fit again; else trust the scores as far as refits confirm them.",
            Weight.WARNING,
        )
    ]


def random_layers(module: nn.Module) -> list[Finding]:
    """Dropout that is on in training: as a layer, or inside attention and recurrent layers."""
    found = [(n, m, p) for n, m in module.named_modules() if m.training and (p := _dropped(m)) > 0]
    if not found:
        return []
    shares = sorted({p for *_, p in found})
    return [
        Finding(
            f"dropout with p = {', '.join(f'{p:g}' for p in shares)}",
            listed([place(module, n) for n, *_ in found]),
            "It is off while scoring and on in training: J of the whole network is not what was minimised, so |grad J| "
            "need not be small at the end of the fit. Refits draw masks of their own: those from scratch do not end "
            "where the base fit did, and stop at that.",
            "Set p = 0 and fit again (a penalty regularises as well, and is part of J); else trust the scores as far "
            "as refits confirm them.",
            Weight.WARNING,
        )
    ]


def fused_attention(module: nn.Module) -> list[Finding]:
    """Layers with fused kernels, which have no second derivative."""
    found = list(_layers(module, nn.MultiheadAttention))
    return [attention_note(_kinds(found), _paths(module, found))] if found else []


def attention_note(what: str, where: str) -> Finding:
    """The finding of fused attention, wherever it was seen."""
    return Finding(
        f"fused attention ({what})",
        where,
        "Handled: scoring takes the plain kernels, which can be differentiated twice. They are slower and keep the "
        "[heads, s, s] weights of each sample in memory.",
        "None needed; where memory runs short lower attribution.batch_size.",
        Weight.NOTE,
    )


def tied_parameters(module: nn.Module) -> list[Finding]:
    """One parameter under several names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(known_as(module, name))
    tied = [group for group in names.values() if len(group) > 1]
    if not tied:
        return []
    return [
        Finding(
            "tied weights",
            listed([" = ".join(group) for group in tied]),
            f"Each counts once, under its first name ({listed([group[0] for group in tied])}); its gradient is that of "
            "all its uses.",
            "None needed; in attribution.parameters give the first name.",
            Weight.NOTE,
        )
    ]


def frozen_parameters(module: nn.Module) -> list[Finding]:
    """Parameters that are not trained, and so not attributed."""
    frozen = [(n, p) for n, p in module.named_parameters() if not p.requires_grad]
    if not frozen:
        return []
    parameters = "1 parameter" if len(frozen) == 1 else f"{len(frozen)} parameters"
    return [
        Finding(
            f"{sum(p.numel() for _, p in frozen):,} frozen weights in {parameters}",
            listed([known_as(module, n) for n, _ in frozen]),
            "They are constants: left out of the scores, the curvature and the refits.",
            "None needed; if they were trained, set requires_grad=True before scoring.",
            Weight.NOTE,
        )
    ]


def recurrent_layers(module: nn.Module) -> tuple[str, str] | None:
    """Classes and paths of the layers that `torch.func.vmap` has no rule for; None where there is none."""
    found = list(_layers(module, RECURRENT))
    return (_kinds(found), _paths(module, found)) if found else None


def _dropped(layer: nn.Module) -> float:
    """The share p of what a layer drops by itself; dropout layers inside it are layers of their own."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return float(layer.p)
    if isinstance(layer, nn.MultiheadAttention):
        return float(layer.dropout)
    if isinstance(layer, nn.RNNBase) and layer.num_layers > 1:  # it drops between its layers
        return float(layer.dropout)
    return 0.0


def _layers(module: nn.Module, kinds: type | tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    return ((n, m) for n, m in module.named_modules() if isinstance(m, kinds))


def _kinds(found: Sequence[tuple[str, nn.Module]]) -> str:
    return ", ".join(dict.fromkeys(type(m).__name__ for _, m in found))


def _paths(module: nn.Module, found: Sequence[tuple[str, nn.Module]]) -> str:
    return listed([place(module, n) for n, _ in found])


def place(module: nn.Module, path: str) -> str:
    """Path of a layer as the author of the model knows it; the name of the class where it is the model itself."""
    prefix = prefix_of(module)
    within = f"{path}.".removeprefix(prefix).rstrip(".")
    return within or type(module.get_submodule(prefix.rstrip("."))).__name__
