"""Choice of the refit strategy, and the log line about it."""

import logging
import re
from typing import ClassVar

import pytest
from torch import optim

from ifloo.errors import InputError
from ifloo.refit import RefitSettings
from ifloo.refit.strategies import StackedReplicas, StrategyError
from ifloo.refit.strategies.base import OneByOne, RefitStrategy
from ifloo.refit.strategies.strategy_choice import choose_strategy
from tests.refit.trained import Trained, perceptron, refitter


def sgd():
    return refitter(lambda: Trained(perceptron()))


def lbfgs():
    return refitter(lambda: Trained(perceptron(), optim.LBFGS))


class Never(RefitStrategy):
    """A strategy that suits no model."""

    name: ClassVar[str] = "chord"
    words: ClassVar[str] = "by chord"

    def __init__(self, how, at_once=None):
        raise StrategyError("its head is not linear")

    def fit(self, tasks):
        raise NotImplementedError


class Single(Never):
    """A strategy that suits every model, but trains one at a time."""

    def __init__(self, how, at_once=None):
        self.max_at_once = 1


CHORD_SGD = "by Newton steps from the base model: SGD fits are not finished to the minimum (finish.after = lbfgs)"
CHORD_LBFGS = (
    r"by Newton steps from the base model: refits start at \|grad J\| = \S+, not at the minimum of the base model"
)
LBFGS = "as copies in one fit: optimizer LBFGS does not step each weight by its own gradients alone"
PICKS = {
    "asked one by one": (sgd, 1, None, OneByOne, 1, "refits: one by one (refit.replicas = 1)"),
    "by kind": (sgd, None, None, StackedReplicas, 64, f"refits: 64 at once, as copies in one fit (not {CHORD_SGD})"),
    "as many as asked": (
        sgd,
        5,
        None,
        StackedReplicas,
        5,
        f"refits: 5 at once, as copies in one fit (not {CHORD_SGD})",
    ),
    "the next serves": (
        sgd,
        None,
        (Never, StackedReplicas),
        StackedReplicas,
        64,
        "refits: 64 at once, as copies in one fit (not by chord: its head is not linear)",
    ),
    "none would pay": (
        sgd,
        None,
        (Never, Single),
        OneByOne,
        1,
        "refits: one by one (not by chord: its head is not linear; not by chord: more than one at once would not pay)",
    ),
}


@pytest.mark.parametrize(("how", "replicas", "kinds", "kind", "at_once", "line"), PICKS.values(), ids=PICKS)
def test_the_path_and_its_line(how, replicas, kinds, kind, at_once, line, caplog):
    with caplog.at_level(logging.INFO, "ifloo"):
        strategy = choose_strategy(how(), replicas, *([kinds] if kinds else []))
    assert type(strategy) is kind
    assert strategy.max_at_once == at_once
    assert caplog.messages == [line]


def test_where_no_path_serves_each_says_why(caplog):
    with caplog.at_level(logging.INFO, "ifloo"):
        strategy = choose_strategy(lbfgs(), None)
    assert type(strategy) is OneByOne
    assert re.fullmatch(rf"refits: one by one \(not {CHORD_LBFGS}; not {LBFGS}\)", caplog.messages[0])


def test_what_was_asked_for_and_cannot_be_had_is_an_error():
    with pytest.raises(InputError) as caught:
        choose_strategy(lbfgs(), 8)
    assert re.fullmatch(
        "refit.replicas = 8 asks for 8 refits in one fit, which would not give what refits one by one give:\n"
        f"  {CHORD_LBFGS}\n"
        f"  {LBFGS}\n"
        "  Leave refit.replicas out, or set it to 1.",
        str(caught.value),
    )


def test_no_refit_at_once_is_refused():
    with pytest.raises(InputError) as caught:
        RefitSettings(replicas=0)
    assert str(caught.value) == "refit.replicas must be >= 1, or null to have it chosen, got 0."
