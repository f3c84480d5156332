"""Silence of a module while its losses are taken: nothing is logged, and the states of its metrics stay as they are."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from ifloo.objective.kept_state import containers_apart, numbers_kept
from ifloo.objective.protocol import Logs

# Attributes that stay when a metric is set apart: those of nn.Module, which functional_call exchanges, and the cache.
_SHARED = frozenset((*vars(nn.Module()), "_silent_values")) - {"training"}
# Settings under which a metric exchanges nothing with other processes, whose samples are not the same in number.
_REPLACED = ("update", "compute", "forward", "_silent_values")  # attributes of an instance until exit
_ALONE = {"sync_on_compute": False, "dist_sync_on_step": False, "_to_sync": False}


@runtime_checkable
class _Measures(Protocol):
    """A metric of torchmetrics, or a collection of them."""

    update: Callable[..., None]
    compute: Callable[..., object]
    forward: Callable[..., object]


@contextmanager
def silenced(module: nn.Module, updates: bool = False) -> Generator[None, None, None]:
    """Turns off logging by the module and its submodules until exit, and leaves what they keep of a pass as it was.

    Inside a transform of torch.func `self.log` fails, and a metric that is updated keeps tensors of the transform.

    Args:
        module: Module whose losses are taken.
        updates: Whether metrics, lists and counters take part in the pass, as within a fit.
    """
    with ExitStack() as stack:
        stack.enter_context(metrics_apart(module, updates))
        if not updates:
            stack.enter_context(containers_apart(module))
            stack.enter_context(numbers_kept(module))
        if not (_is_logger(module) and module.log is _no_log):  # unless an outer context has silenced it
            stack.enter_context(logging_to(module, _no_log, _no_log))
        yield


@contextmanager
def logging_to(
    module: nn.Module, log: Callable[..., None], log_dict: Callable[..., None]
) -> Generator[None, None, None]:
    """Replaces `self.log` and `self.log_dict` of the module and its submodules until exit.

    A flag, a tensor or a function that a layer calls `log` is part of its forward pass and stays.
    """
    before = [(m, m.log, m.log_dict) for m in module.modules() if _is_logger(m)]
    for logger, _, _ in before:
        logger.log, logger.log_dict = log, log_dict
    try:
        yield
    finally:
        for logger, own_log, own_log_dict in before:
            del logger.log, logger.log_dict
            if logger.log != own_log:  # it was an attribute of the instance, not a method of its class
                logger.log = own_log
            if logger.log_dict != own_log_dict:
                logger.log_dict = own_log_dict


def _is_logger(module: nn.Module) -> TypeGuard[Logs]:
    """Whether the module logs as a LightningModule does: `log` and `log_dict` are both there, and can be called."""
    return isinstance(module, Logs) and callable(module.log) and callable(module.log_dict)


def _no_log(*_: object, **__: object) -> None:
    """Replaces `self.log`, which fails inside a transform if the module is attached to a Trainer."""


def metric_paths(module: nn.Module) -> list[str]:
    """Lists the paths of the submodules that are metrics of torchmetrics, or collections of them."""
    kinds = _kinds()
    return [path for path, one in module.named_modules() if kinds and isinstance(one, kinds)]


def _kinds() -> tuple[type[nn.Module], ...]:
    """Returns the classes of metrics; none where torchmetrics, which Lightning imports, is not loaded."""
    torchmetrics = sys.modules.get("torchmetrics")
    return () if torchmetrics is None else (torchmetrics.Metric, torchmetrics.MetricCollection)


@contextmanager
def metrics_apart(module: nn.Module, updates: bool = False) -> Generator[None, None, None]:
    """Keeps the states of the module's torchmetrics as they are: until exit its metrics work on copies of them.

    Inside transforms of torch.func, where most metrics cannot run, they are silent: an update does nothing, and the
    value is zero, in the form that the metric gives it. If a metric's value enters the loss, the loss is another one
    there, and has to be taken outside transforms, where the metric runs.

    Args:
        module: Module that holds the metrics.
        updates: Whether the metrics keep what they are updated with outside transforms, as within a fit.
    """
    kinds = _kinds()
    if not kinds:
        yield
        return
    found = _metrics_of(module, kinds)
    before = [dict(vars(one)) for one in found]
    for one in found:
        if not updates:
            _copy_states(one)
        _make_silent(one, single=isinstance(one, kinds[0]))
    try:
        yield
    finally:
        for one, attributes in zip(found, before, strict=True):
            if updates:  # all but the functions stays as it is now
                attributes = {k: v for k, v in vars(one).items() if k not in _REPLACED} | {
                    k: v for k, v in attributes.items() if k in _REPLACED
                }
            vars(one).clear()
            vars(one).update(attributes)


def _metrics_of(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    """Lists the metrics among the submodules, and those that the module or a child of it keeps in a list or a dict."""
    found = [one for one in module.modules() if isinstance(one, kinds)]
    for owner in (module, *module.children()):
        for held in chain.from_iterable(map(_items, vars(owner).values())):
            if isinstance(held, kinds):
                found += [one for one in held.modules() if isinstance(one, kinds)]
    return list({id(one): one for one in found}.values())


def _items(value: object) -> Iterator[object]:
    if isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()


def _copy_states(metric: nn.Module) -> None:
    """Lets a metric, or a collection, work on copies of its states, and by itself."""
    attributes = vars(metric)
    attributes.update({name: _copied(value) for name, value in attributes.items() if name not in _SHARED})
    attributes.update({name: value for name, value in _ALONE.items() if name in attributes})


def _make_silent(metric: nn.Module, single: bool) -> None:
    """Lets a metric be silent inside transforms; a collection runs its metrics, which are silent by themselves."""
    attributes = vars(metric)
    assert isinstance(metric, _Measures)
    attributes["update"] = _silent(metric.update, lambda: None)
    if not single:
        return
    values: list[object] = attributes.setdefault("_silent_values", [])  # of the outermost context, for all within it
    compute = metric.compute

    def zeros() -> object:
        if not values:
            values.append(_zeros_of(compute, metric))
        return values[0]

    attributes.update(compute=_silent(compute, zeros), forward=_silent(metric.forward, zeros))


def _silent(function: Callable[..., object], answer: Callable[[], object]) -> Callable[..., object]:
    """Returns the function, replaced by another answer where it is called inside a transform of torch.func."""

    def either(*args: object, **named: object) -> object:
        inside = torch._C._functorch.peek_interpreter_stack() is not None
        return answer() if inside else function(*args, **named)

    return either


def _zeros_of(compute: Callable[..., object], metric: nn.Module) -> object:
    """Returns zeros in the form of a metric's value; a single zero where the metric has no value yet."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # a metric warns if it was not updated
        try:
            return _zeroed(compute())
        except Exception:  # a metric without samples may raise anything
            states = (value for value in vars(metric).values() if isinstance(value, Tensor))
            return torch.zeros((), device=next(states, torch.empty(0)).device)


def _zeroed(value: object) -> object:
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if isinstance(value, Mapping):
        return {name: _zeroed(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_zeroed(one) for one in value]
    return 0.0


def _copied(value: object) -> object:
    """Copies tensors, and the lists and dicts that hold them; anything else is shared."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) is list:
        return [_copied(one) for one in value]
    if type(value) is dict:
        return {name: _copied(one) for name, one in value.items()}
    return value
