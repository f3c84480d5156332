"""Findings from one traced forward pass on a few samples, and from the derivatives that scoring needs.

The trace covers this pass on these samples, and no branch that only other samples take. The states of random
generators are restored afterwards. The module is changed (its metrics and buffers count the samples): pass a copy.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vjp, vmap
from torch.overrides import TorchFunctionMode

from ifloo.doctor.finding import Finding, Severity
from ifloo.doctor.layer_findings import attention_note
from ifloo.errors import first_sentence, summarise
from ifloo.objective.batches import Batch
from ifloo.objective.functional import FunctionalLosses, logging_to, scoring
from ifloo.objective.layers import is_random, kinds, layer_path, places, recurrent_layers
from ifloo.objective.randomness import undisturbed
from ifloo.objective.silence import metric_paths
from ifloo.objective.user_code import reason
from ifloo.params import author_name

Run = Callable[..., object]  # (the module, a batch): one forward pass to the loss

# Functions that drop at random if their argument `training` is true, and functions that always draw random numbers.
DROPPING = frozenset(
    ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "rrelu")
)
DRAWING = frozenset(
    (
        *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "normal_"),
        *("bernoulli", "bernoulli_", "uniform_", "multinomial", "poisson", "exponential_", "gumbel_softmax"),
    )
)


def changed_state(module: nn.Module, batch: Batch, run: Run) -> list[str]:
    """Returns the paths of buffers and tensor attributes that a pass in evaluation mode changes.

    Those of torchmetrics are left out: while samples are scored, metrics work on copies.
    """
    before = _state(module)
    with scoring(module), undisturbed():
        run(module, batch)
        after = _state(module)  # on leaving, the state is that of before
    metrics = tuple(f"{path}." for path in metric_paths(module))
    changed = [name for name, x in after.items() if name not in before or not _equal(x, before[name])]
    return [author_name(module, name) for name in changed if not name.startswith(metrics)]


def state_finding(changed: list[str], refused: Exception | None) -> Finding:
    """Returns the finding of a pass that changes its module.

    Args:
        changed: Paths of the changed buffers and metrics.
        refused: Error of torch.func at this pass; None if it accepts it.
    """
    how_many = "a buffer or metric" if len(changed) == 1 else f"{len(changed)} buffers or metrics"
    return Finding(
        f"{how_many} changed by each call in evaluation mode",
        summarise(changed),
        "The loss is to be a function of weights and sample alone. "
        + (
            f"torch.func refuses to differentiate this one: {first_sentence(refused)}."
            if refused
            else "This pass also depends on, or counts, the calls before it: scores may depend on their order."
        ),
        "Change buffers and metrics in training_step or validation_step and not where losses of samples are taken, or "
        "only `if self.training:`.",
        Severity.FATAL if refused else Severity.WARNING,
    )


@dataclass
class CallTrace(TorchFunctionMode):
    """Trace of a forward pass: which functions it calls, and from which layer."""

    module: nn.Module
    dropping: list[str] = field(default_factory=list)
    drawing: list[str] = field(default_factory=list)
    attention: list[str] = field(default_factory=list)
    normalising: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Starts with an empty trace, at the root of the module."""
        super().__init__()
        self._within: list[tuple[str, nn.Module]] = [("", self.module)]

    @contextmanager
    def active(self) -> Generator[None, None, None]:
        """Follows the module through its layers, and records what it logs, while the context is open."""
        with ExitStack() as stack:
            for name, layer in self.module.named_modules():
                enter = layer.register_forward_pre_hook(partial(self._enter, name))
                leave = layer.register_forward_hook(self._leave, always_call=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            stack.enter_context(logging_to(self.module, self._log, self._log_dict))
            stack.enter_context(undisturbed())
            stack.enter_context(self)
            yield

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Records a call, then makes it."""
        named, name = kwargs or {}, getattr(func, "__name__", "")
        path, layer = self._within[-1]
        at = f"{layer_path(self.module, path)} ({name})"
        if name in DROPPING and _draws(named):
            if not is_random(layer):  # `diagnose` reports random layers without a pass
                self.dropping.append(at)
        elif name in DRAWING:
            self.drawing.append(at)
        elif name == "scaled_dot_product_attention":
            self.attention.append(at)
            if named.get("dropout_p", args[4] if len(args) > 4 else 0.0) > 0:
                self.dropping.append(at)
        elif name == "batch_norm" and named.get("training") and not isinstance(layer, nn.modules.batchnorm._NormBase):
            self.normalising.append(at)
        return func(*args, **named)

    def _enter(self, name: str, layer: nn.Module, _: object) -> None:
        self._within.append((name, layer))

    def _leave(self, *_: object) -> None:
        self._within.pop()

    def _log(self, name: str, *_: object, **__: object) -> None:
        self.logged.append(name)

    def _log_dict(self, values: Mapping[str, object], *_: object, **__: object) -> None:
        self.logged.extend(map(str, values))


def _draws(arguments: Mapping[str, Any]) -> bool:
    """Returns whether a function in `DROPPING` draws random numbers with these arguments."""
    spread = arguments["upper"] - arguments["lower"] if "upper" in arguments else arguments.get("p", 0.5)
    return bool(arguments.get("training")) and spread > 0


def call_findings(module: nn.Module, batch: Batch, run: Run) -> list[Finding]:
    """Reports the calls of a pass in training mode: random numbers, fused attention, batch norm, `self.log`."""
    trace = CallTrace(module)
    try:
        with trace.active():
            run(module, batch)
    except Exception as error:  # a model outside its Trainer may raise anything
        return [_not_traced(module, error)]
    findings = []
    if random_calls := trace.dropping + trace.drawing:
        findings.append(_random_calls(_unique(random_calls)))
    if trace.normalising:
        findings.append(_batch_norm_calls(_unique(trace.normalising)))
    if trace.attention:
        findings.append(attention_note("F.scaled_dot_product_attention", summarise(_unique(trace.attention))))
    if trace.logged:
        findings.append(_logging(_unique(trace.logged)))
    return findings


def derivative_findings(losses: FunctionalLosses, theta: Tensor, few: Batch, changed: list[str]) -> list[Finding]:
    """Reports derivatives that scoring needs and this module lacks, except those that `preflight` explains better.

    Args:
        losses: Losses of the module.
        theta: Parameters, `[p]`.
        few: Batch of a few samples.
        changed: Paths of state that a pass changes, the most likely cause of a failure.
    """
    with scoring(losses.module), undisturbed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of operations that are slow under vmap
        for what, attempt in _attempts(losses, theta, few):
            try:
                attempt()
            except Exception as error:  # torch.func and the model may raise any class
                return _explained(losses.module, what, error, changed)
    return [state_finding(changed, None)] if changed else []


def _attempts(losses: FunctionalLosses, theta: Tensor, few: Batch) -> list[tuple[str | None, Callable[[], object]]]:
    """Returns the derivatives in the order in which scoring needs them; unnamed where `preflight` reports them."""

    def mean(t: Tensor) -> Tensor:
        return losses.sample_losses(t, few).mean() + losses.penalty(t)

    return [
        (None, lambda: vmap(losses.loss_alone, in_dims=(None, 0))(theta, few)),
        (None, lambda: vmap(grad(losses.loss_alone), in_dims=(None, 0))(theta, few)),
        ("derivative in forward mode (jvp)", lambda: jvp(lambda t: losses.sample_losses(t, few), (theta,), (theta,))),
        ("second derivative (vjp of grad)", lambda: vjp(grad(mean), theta)[1](theta)),
    ]


def _explained(module: nn.Module, what: str | None, error: Exception, changed: list[str]) -> list[Finding]:
    layers = recurrent_layers(module) if re.search(r"lstm|gru|rnn", str(error)) else []
    if layers:
        return [_recurrent(kinds(layers), summarise(places(module, layers)), error)]
    if changed:
        return [state_finding(changed, error)]
    return [_not_differentiable(module, what, error)] if what else []


def _recurrent(classes: str, paths: str, error: Exception) -> Finding:
    return Finding(
        f"{classes}, for which torch.func has no rule",
        paths,
        f"Losses and gradients of single samples cannot be computed: {first_sentence(error)}.",
        "Write the recurrence out with nn.Linear, torch.tanh and torch.sigmoid, one step of the sequence after the "
        "other (weights can be copied over), or use a convolution or attention in its place.",
        Severity.FATAL,
    )


def _not_differentiable(module: nn.Module, what: str, error: Exception) -> Finding:
    return Finding(
        f"a loss without a {what}",
        type(module).__name__,
        f"Scores through a curvature need it; torch says: {first_sentence(error)}.",
        "Replace the operation that is named: custom autograd functions, checkpointing and fused kernels often lack "
        "it. Or take a method of first derivatives alone (attribution.method ifloo.attribution.GradientDot or TracIn).",
        Severity.FATAL,
    )


def _random_calls(calls: list[str]) -> Finding:
    return Finding(
        "random numbers drawn in the forward pass of training",
        summarise(calls),
        "While scoring they must be off (`training=self.training`), and then J is not the function that was trained; "
        "left on, the loss of a sample differs from call to call and scoring stops.",
        "Take them out and fit again; else trust the scores as far as refits confirm them.",
        Severity.WARNING,
    )


def _batch_norm_calls(calls: list[str]) -> Finding:
    return Finding(
        "F.batch_norm by the statistics of the batch",
        summarise(calls),
        "Samples of a batch are mixed in training; if that is so in evaluation mode too, scoring stops at it.",
        "Use nn.GroupNorm or nn.LayerNorm, and fit again.",
        Severity.WARNING,
    )


def _logging(names: list[str]) -> Finding:
    return Finding(
        "self.log within the loss of a sample",
        summarise(names),
        "Harmless: silent while samples are scored and while refits are trained.",
        "None needed.",
        Severity.NOTE,
    )


def _not_traced(module: nn.Module, error: Exception) -> Finding:
    return Finding(
        "a pass in training mode that could not be traced",
        type(module).__name__,
        f"Whether it draws random numbers or logs is not known: {reason(error)}.",
        "None needed if scoring runs nevertheless.",
        Severity.NOTE,
    )


def _unique(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Copies all tensors of a module that are not parameters."""
    kept: dict[str, Tensor] = {}
    for path, layer in module.named_modules():
        own = {k: v for k, v in layer.__dict__.items() if isinstance(v, Tensor) and not k.startswith("_")}
        own |= layer._buffers
        kept |= {f"{path}.{k}".lstrip("."): v.detach().clone() for k, v in own.items() if v is not None}
    return kept


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
