"""The loader of the tests: the choice of one among several, and checks that a module can read its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from ifloo.errors import InputError
from ifloo.objective.batches import Batch, without_ids
from ifloo.objective.id_rule import ID_KEYS, IdRule


def chosen(loaders: object, choice: str | int | None, where: str) -> object:
    """Returns the loader of this name or index; without a choice, the single one or whatever the method gave.

    Args:
        loaders: Result of a loader method: one loader, or a list or dictionary of them.
        choice: Key or index.
        where: Name of the method, for messages.

    Raises:
        InputError: If several loaders are there and none is chosen, or the chosen one is not there.
    """
    named = _by_name(loaders)
    if choice is None:
        if len(named) == 1:
            return next(iter(named.values()))
        raise InputError(f"{where} gives {len(named)} loaders ({_listed(named)}).\n  {_REMEDY}")
    if str(choice) not in named:
        raise InputError(f"{where} has no loader {choice}; it gives {_listed(named)}.\n  {_REMEDY}")
    return named[str(choice)]


def recorded_loaders(name: str, loaders: object) -> dict[str, DataLoader[Batch]]:
    """Returns the loaders of one method by the names under which a fit records their rows.

    Args:
        name: `val` or `test`.
        loaders: Result of a loader method: one loader, or a list or dictionary of them.
    """
    named = _by_name(loaders)
    return {recorded_name(name, loaders, key): one for key, one in named.items() if isinstance(one, DataLoader)}


def recorded_name(name: str, loaders: object, choice: str | int | None) -> str:
    """Returns the name under which a fit records the rows of a loader: `val`, or `val.<choice>` of several."""
    return name if len(_by_name(loaders)) == 1 else f"{name}.{choice}"


def _by_name(loaders: object) -> dict[str, object]:
    loaders = loaders.iterables if isinstance(loaders, CombinedLoader) else loaders
    if isinstance(loaders, Mapping):
        return {str(key): loader for key, loader in loaders.items()}
    if isinstance(loaders, (list, tuple)):
        return {str(index): loader for index, loader in enumerate(loaders)}
    return {"0": loaders}


_REMEDY = "Choose one by its name or index: --data_loader NAME (in Python, AdaptedData(data, test_loader=...))."


def refuse_other_form(training: Batch, test: Batch, rule: IdRule, where_training: str, where: str) -> None:
    """Checks that a test batch has the parts of a training batch, so that the same loss can read it.

    Args:
        training: Batch of training samples.
        test: Batch of test samples, which needs no ids.
        rule: Source of the ids of the training samples.
        where_training: Name of the training loader, for messages.
        where: Name of the test loader, for messages.

    Raises:
        InputError: If it lacks one.
    """
    training, test = without_ids(training), without_ids(test)
    if rule.source == "third" and isinstance(training, (list, tuple)):
        training = training[:2]
    if difference := _lacking(training, test, "the batch"):
        raise InputError(
            f"{where} gives batches of another form than {where_training}: {difference}.\n"
            "  The loss of a test sample is that of training: let both give the same parts."
        )


def _lacking(training: object, test: object, at: str) -> str | None:
    """Describes the first part of a training batch that a test batch lacks; None if it has all."""
    if _kind(training) != _kind(test):
        return f"{at} is {_kind(test)}, in training {_kind(training)}"
    if isinstance(training, Mapping) and isinstance(test, Mapping):
        if missing := [key for key in training if key not in test and key not in ID_KEYS]:
            return f"{at} lacks {', '.join(map(repr, missing))}"
        parts = [_lacking(value, test[key], f"{key!r}") for key, value in training.items() if key in test]
        return next(filter(None, parts), None)
    if isinstance(training, (list, tuple)) and isinstance(test, (list, tuple)) and at == "the batch":
        if len(test) < len(training):
            return f"{at} has {_counted(test)}, in training {_counted(training)}"
        parts = [_lacking(a, b, f"item {k}") for k, (a, b) in enumerate(zip(training, test, strict=False))]
        return next(filter(None, parts), None)
    return None


def _kind(part: object) -> str:
    if isinstance(part, Tensor):
        return "a tensor"
    if isinstance(part, Mapping):
        return "a dictionary"
    return "a list" if isinstance(part, (list, tuple)) else f"of type {type(part).__name__}"


def _counted(items: Sequence[object]) -> str:
    return f"{len(items)} item{'' if len(items) == 1 else 's'}"


def _listed(named: Mapping[str, object]) -> str:
    return ", ".join(named) or "none"
