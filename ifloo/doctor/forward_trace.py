"""What only a run shows: one forward pass on a few samples, watched, and the derivatives that scoring will ask for.

Seen is what this pass does on these samples: a branch that other samples take is not. Random numbers drawn on the way
leave the generators as they were. The module is changed (its metrics and buffers count the samples): give a copy.
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
from ifloo.params import author_name

Run = Callable[..., object]  # (the module, a batch): one forward pass to the loss

# Functions that drop at random where `training` is said, and those that draw numbers whatever is said.
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
    """Paths of buffers, and of tensors kept as attributes (metrics do so), that a pass in evaluation mode changes."""
    before = _state(module)
    with scoring(module), undisturbed():
        run(module, batch)
    after = _state(module)
    return [author_name(module, name) for name, x in after.items() if name not in before or not _equal(x, before[name])]


def state_finding(changed: list[str], refused: Exception | None) -> Finding:
    """What a pass that changes its module comes to; `refused`: what torch.func says, None where it lets it through."""
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
class Watch(TorchFunctionMode):
    """Notes which functions a forward pass calls, and from which layer."""

    module: nn.Module
    dropping: list[str] = field(default_factory=list)
    drawing: list[str] = field(default_factory=list)
    attention: list[str] = field(default_factory=list)
    normalising: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Nothing seen yet."""
        super().__init__()
        self._within: list[tuple[str, nn.Module]] = [("", self.module)]

    @contextmanager
    def watching(self) -> Generator[None, None, None]:
        """Follows the module through its layers, and takes what it logs."""
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
        """Notes a call before it is made."""
        said, name = kwargs or {}, getattr(func, "__name__", "")
        path, layer = self._within[-1]
        at = f"{layer_path(self.module, path)} ({name})"
        if name in DROPPING and _draws(said):
            if not is_random(layer):  # which `diagnose` finds without a pass
                self.dropping.append(at)
        elif name in DRAWING:
            self.drawing.append(at)
        elif name == "scaled_dot_product_attention":
            self.attention.append(at)
            if said.get("dropout_p", args[4] if len(args) > 4 else 0.0) > 0:
                self.dropping.append(at)
        elif name == "batch_norm" and said.get("training") and not isinstance(layer, nn.modules.batchnorm._NormBase):
            self.normalising.append(at)
        return func(*args, **said)

    def _enter(self, name: str, layer: nn.Module, _: object) -> None:
        self._within.append((name, layer))

    def _leave(self, *_: object) -> None:
        self._within.pop()

    def _log(self, name: str, *_: object, **__: object) -> None:
        self.logged.append(name)

    def _log_dict(self, values: Mapping[str, object], *_: object, **__: object) -> None:
        self.logged.extend(map(str, values))


def _draws(arguments: Mapping[str, Any]) -> bool:
    """Whether one of the functions `DROPPING` draws anything with these arguments."""
    spread = arguments["upper"] - arguments["lower"] if "upper" in arguments else arguments.get("p", 0.5)
    return bool(arguments.get("training")) and spread > 0


def watched(module: nn.Module, batch: Batch, run: Run) -> list[Finding]:
    """What a pass in the modes of training calls: random numbers, fused attention, batch norm, `self.log`."""
    watch = Watch(module)
    try:
        with watch.watching():
            run(module, batch)
    except Exception as error:  # whatever a model raises that is run outside its Trainer
        return [_unseen(module, error)]
    findings = []
    if random_calls := watch.dropping + watch.drawing:
        findings.append(_random_calls(_once(random_calls)))
    if watch.normalising:
        findings.append(_batch_norm_calls(_once(watch.normalising)))
    if watch.attention:
        findings.append(attention_note("F.scaled_dot_product_attention", summarise(_once(watch.attention))))
    if watch.logged:
        findings.append(_logging(_once(watch.logged)))
    return findings


def refused(losses: FunctionalLosses, theta: Tensor, few: Batch, changed: list[str]) -> list[Finding]:
    """Derivatives that scoring takes and this module has not; none where `preflight` has better words.

    Args:
        losses: of the module.
        theta: `[p]`.
        few: some samples.
        changed: state that a pass changes, the first thing to suspect.
    """
    with scoring(losses.module), undisturbed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on operations that are slow under vmap
        for what, attempt in _attempts(losses, theta, few):
            try:
                attempt()
            except Exception as error:  # torch.func raises many kinds, and so does what it runs
                return _culprit(losses.module, what, error, changed)
    return [state_finding(changed, None)] if changed else []


def _attempts(losses: FunctionalLosses, theta: Tensor, few: Batch) -> list[tuple[str | None, Callable[[], object]]]:
    """Derivatives as scoring comes to them; without a name where `preflight` has words of its own."""

    def mean(t: Tensor) -> Tensor:
        return losses.sample_losses(t, few).mean() + losses.penalty(t)

    return [
        (None, lambda: vmap(losses.loss_alone, in_dims=(None, 0))(theta, few)),
        (None, lambda: vmap(grad(losses.loss_alone), in_dims=(None, 0))(theta, few)),
        ("derivative in forward mode (jvp)", lambda: jvp(lambda t: losses.sample_losses(t, few), (theta,), (theta,))),
        ("second derivative (vjp of grad)", lambda: vjp(grad(mean), theta)[1](theta)),
    ]


def _culprit(module: nn.Module, what: str | None, error: Exception, changed: list[str]) -> list[Finding]:
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


def _unseen(module: nn.Module, error: Exception) -> Finding:
    return Finding(
        "a pass in training mode that could not be watched",
        type(module).__name__,
        f"Whether it draws random numbers or logs is not known: {type(error).__name__}: {first_sentence(error)}.",
        "If scoring runs nevertheless, none needed.",
        Severity.NOTE,
    )


def _once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors a module keeps that are no parameters."""
    kept: dict[str, Tensor] = {}
    for path, layer in module.named_modules():
        own = {k: v for k, v in layer.__dict__.items() if isinstance(v, Tensor) and not k.startswith("_")}
        own |= layer._buffers
        kept |= {f"{path}.{k}".lstrip("."): v.detach().clone() for k, v in own.items() if v is not None}
    return kept


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
