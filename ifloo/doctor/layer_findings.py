"""Findings from the layers and parameters of a module, without data and without a forward pass.

The checks know layers by their class. They do not see functions that a forward pass calls (`F.dropout`,
`F.scaled_dot_product_attention`, a batch norm written by hand), nor whether a layer is used at all: for those
`ifloo.doctor.forward_trace` runs the module on a few samples. A layer that was put into evaluation mode before the fit
is trained in that mode, and is not reported.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ifloo.doctor.finding import Finding, Severity
from ifloo.errors import InputError, summarise
from ifloo.objective.layers import attention_layers, kinds, mixing_norms, places, random_layers, running_norms
from ifloo.params import ParamSpace, author_name


def diagnose(module: nn.Module, parameters: Sequence[str] = ("*",)) -> list[Finding]:
    """Runs all checks of this file.

    Args:
        module: Module whose layers are in the modes in which they are trained.
        parameters: Shell-style patterns of the parameters to attribute.
    """
    return [
        *unattributable(module, parameters),
        *batch_statistics(module),
        *running_statistics(module),
        *randomness(module),
        *fused_attention(module),
        *tied_parameters(module),
        *frozen_parameters(module),
    ]


def unattributable(module: nn.Module, parameters: Sequence[str]) -> list[Finding]:
    """Reports that no parameter matches, or that those that match differ in dtype or device."""
    try:
        ParamSpace.of(module, parameters)
    except InputError as error:
        first: dict[str, str] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                kind = str(parameter.dtype).removeprefix("torch.")
                first.setdefault(f"{kind} on {parameter.device}", author_name(module, name))
        mixed = [f"{name} ({kind})" for kind, name in first.items()]
        return [Finding.of_error(error, summarise(mixed) if len(mixed) > 1 else "attribution.parameters")]
    return []


def batch_statistics(module: nn.Module) -> list[Finding]:
    """Reports BatchNorm without running statistics, which mixes the samples of a batch in every mode."""
    found = mixing_norms(module)
    if not found:
        return []
    return [
        Finding(
            f"{kinds(found)} without running statistics (track_running_stats=False)",
            summarise(places(module, found)),
            "The output of a sample depends on the other samples of its batch in evaluation mode too: its loss is not "
            "its own, and scoring stops at this.",
            "Use nn.GroupNorm or nn.LayerNorm, or keep running statistics, and fit again.",
            Severity.FATAL,
        )
    ]


def running_statistics(module: nn.Module) -> list[Finding]:
    """Reports layers with running statistics, which compute one function in training and another while scoring."""
    found = running_norms(module)
    if not found:
        return []
    return [
        Finding(
            f"{kinds(found)} in training mode",
            summarise(places(module, found)),
            "Training normalises by the statistics of the batch (InstanceNorm: of the sample), scoring by the running "
            "ones, held constant: J is then another function than the one trained, |grad J| need not be small at its "
            "end, and what a refit does to the running statistics is no part of the scores.",
            "Use nn.GroupNorm or nn.LayerNorm, or put these layers into evaluation mode before the fit (.eval() in "
            "__init__), and fit again; else trust the scores as far as refits confirm them.",
            Severity.WARNING,
        )
    ]


def randomness(module: nn.Module) -> list[Finding]:
    """Reports layers that draw random numbers: all forms of dropout, random slopes, random pooling."""
    found = random_layers(module)
    dropped = [one for one in found if one.share > 0]
    findings = [_dropout([one.share for one in dropped], [one.path for one in dropped])] if dropped else []
    for draws, remedy, always in dict.fromkeys((x.draws, x.remedy, x.in_every_mode) for x in found if x.share == 0):
        paths = [one.path for one in found if one.draws == draws]
        findings.append((_always_random if always else _random_in_training)(draws, paths, remedy))
    return findings


def _dropout(shares: Sequence[float], paths: Sequence[str]) -> Finding:
    return Finding(
        f"dropout with p = {', '.join(f'{p:g}' for p in sorted(set(shares)))}",
        summarise(paths),
        "It is off while scoring and on in training: J of the whole network is not what was minimised, so |grad J| "
        "need not be small at the end of the fit. Refits draw masks of their own: cold refits do not reproduce "
        "the base fit and are refused.",
        "Set p = 0 and fit again (a penalty regularises as well, and is part of J); else trust the scores as far "
        "as refits confirm them.",
        Severity.WARNING,
    )


def _random_in_training(draws: str, paths: Sequence[str], remedy: str) -> Finding:
    return Finding(
        f"{draws} drawn at random in training",
        summarise(paths),
        "They are fixed while scoring: J of the whole network is not what was minimised, so |grad J| need not be small "
        "at the end of the fit. Each refit draws values of its own: cold refits do not reproduce the base fit and are "
        "refused.",
        f"{remedy[0].upper()}{remedy[1:]} and fit again; else trust the scores as far as refits confirm them.",
        Severity.WARNING,
    )


def _always_random(draws: str, paths: Sequence[str], remedy: str) -> Finding:
    return Finding(
        f"{draws} drawn at random in every mode",
        summarise(paths),
        "The loss of a sample differs from call to call, in evaluation mode too, and scoring stops at this.",
        f"{remedy[0].upper()}{remedy[1:]} and fit again.",
        Severity.FATAL,
    )


def fused_attention(module: nn.Module) -> list[Finding]:
    """Reports attention layers with fused kernels, which have no second derivative."""
    found = attention_layers(module)
    return [attention_note(kinds(found), summarise(places(module, found)))] if found else []


def attention_note(what: str, where: str) -> Finding:
    """Returns the finding of fused attention, in a layer or in a function call."""
    return Finding(
        f"fused attention ({what})",
        where,
        "Handled: scoring takes the plain kernels, which can be differentiated twice. They are slower and keep the "
        "[heads, s, s] weights of each sample in memory.",
        "None needed; where memory runs short lower attribution.batch_size.",
        Severity.NOTE,
    )


def tied_parameters(module: nn.Module) -> list[Finding]:
    """Reports parameters that have several names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(author_name(module, name))
    tied = [group for group in names.values() if len(group) > 1]
    if not tied:
        return []
    return [
        Finding(
            "tied weights",
            summarise([" = ".join(group) for group in tied]),
            f"Each counts once, under its first name ({summarise([group[0] for group in tied])}); its gradient is that "
            "of all its uses.",
            "None needed; in attribution.parameters give the first name.",
            Severity.NOTE,
        )
    ]


def frozen_parameters(module: nn.Module) -> list[Finding]:
    """Reports parameters that are not trained, and so not attributed."""
    frozen = [(n, p) for n, p in module.named_parameters() if not p.requires_grad]
    if not frozen:
        return []
    parameters = "1 parameter" if len(frozen) == 1 else f"{len(frozen)} parameters"
    return [
        Finding(
            f"{sum(p.numel() for _, p in frozen):,} frozen weights in {parameters}",
            summarise([author_name(module, n) for n, _ in frozen]),
            "They are constants: left out of the scores, the curvature and the refits.",
            "None needed; if they were trained, set requires_grad=True before scoring.",
            Severity.NOTE,
        )
    ]
