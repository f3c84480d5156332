"""Failures of the user's code: what failed, the exception in its own words, and the user's file and line."""

import inspect
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vjp, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from ifloo.errors import InputError, WorkError
from ifloo.objective.user_code import reason, user_code
from ifloo.termination import Terminated


class Net(nn.Module):
    logger = None

    @property
    def sink(self):
        return self.logger.log_metrics

    @property
    def outer(self):
        return self.sink


class Rows(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"x": i}["label"]


def line_of(function):
    return inspect.getsourcelines(function)[1] + 1


def failure(function, *args):
    with pytest.raises(InputError) as caught, user_code("training_step of Net", "on one sample"):
        function(*args)
    return caught.value


def step():
    return Net.logger.log_metrics({"x": 0.0})


def test_the_users_line_is_named_and_the_exception_chained():
    error = failure(step)
    assert str(error) == (
        "training_step of Net failed on one sample: AttributeError: 'NoneType' object has no attribute 'log_metrics' "
        f"(tests/objective/test_user_code.py:{line_of(step)})"
    )
    assert isinstance(error.__cause__, AttributeError)


@pytest.mark.parametrize(
    "raised",
    [KeyError("label"), TypeError("a"), AssertionError(), StopIteration(), NotImplementedError("b"), OSError(5)],
)
def test_each_type_of_exception_becomes_an_error_of_input(raised):
    def fails():
        raise raised

    error = failure(fails)
    assert error.__cause__ is raised
    assert f"{type(raised).__name__}" in str(error)
    assert str(error).endswith(f"(tests/objective/test_user_code.py:{line_of(fails)})")


@pytest.mark.parametrize(
    "raised",
    [InputError("a"), WorkError("b"), KeyboardInterrupt(), Terminated(), MemoryError(), torch.OutOfMemoryError("c")],
)
def test_errors_of_ifloo_interrupts_and_lack_of_memory_pass_untouched(raised):
    with pytest.raises(type(raised)) as caught, user_code("training_step of Net"):
        raise raised
    assert caught.value is raised
    assert caught.value.__cause__ is None


def test_the_line_is_the_users_where_torch_fails_below_it():
    def fails():
        return nn.Linear(3, 2)(torch.ones(2))

    assert str(failure(fails)).endswith(f"(tests/objective/test_user_code.py:{line_of(fails)})")


def test_the_place_within_a_package_is_named_after_the_users():
    def fails():
        np.testing.assert_array_equal([1], [2])

    text = str(failure(fails))
    assert f"(tests/objective/test_user_code.py:{line_of(fails)}, in numpy/testing/" in text
    assert "\n" not in text


def test_the_standard_library_is_no_place():
    def fails():
        json.loads("{")

    assert str(failure(fails)).endswith(f"(tests/objective/test_user_code.py:{line_of(fails)})")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_fails_in_a_worker_fails_in_the_same_words(workers):
    with pytest.raises(InputError) as caught, user_code("Rows.__getitem__"):
        next(iter(DataLoader(Rows(), num_workers=workers)))
    assert str(caught.value) == (
        f"Rows.__getitem__ failed: KeyError: 'label' (tests/objective/test_user_code.py:{line_of(Rows.__getitem__)})"
    )


@pytest.mark.parametrize("name", ["sink", "outer"])
def test_an_attribute_error_in_a_property_is_not_masked_by_the_module(name):
    fails = {"sink": lambda: Net().sink, "outer": lambda: Net().outer}[name]
    text = str(failure(fails))
    assert "'NoneType' object has no attribute 'log_metrics'" in text
    assert text.endswith(f"(tests/objective/test_user_code.py:{line_of(Net.sink.fget) + 1})")


def test_an_attribute_that_is_missing_stays_missing():
    assert "'Net' object has no attribute 'elsewhere'" in str(failure(lambda: Net().elsewhere))


def test_a_remedy_is_the_last_line():
    with pytest.raises(InputError, match=r"\)\n  Take another\.$"), user_code("setup of Data", remedy="Take another."):
        step()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def hooked(x):
    y = x * 1
    y.register_hook(lambda g: 2 * g)
    return y.sum()


LSTM = nn.LSTM(3, 3)
ROWS = torch.arange(12.0).reshape(4, 3)
TABLE = torch.ones(5, 3)
MEANINGS = {
    "item": (lambda: vmap(lambda a: a * a.sum().item())(ROWS), "needs values of tensors (`.item()`"),
    "if": (lambda: vmap(lambda a: a if a.sum() > 0 else -a)(ROWS), "`if` on a tensor"),
    "numpy": (lambda: vmap(lambda a: torch.tensor(a.numpy()))(ROWS), "needs values of tensors"),
    "unique": (lambda: vmap(torch.unique)(ROWS), "depends on the values of tensors (unique)"),
    "mask": (
        lambda: vmap(lambda a: a[a > 0].sum())(ROWS),
        "depends on the values of tensors (a boolean mask",
    ),
    "kept": (lambda: kept_tensor() + 1, "a tensor kept from an earlier pass"),
    "in place": (lambda: vmap(lambda a: torch.zeros(3).add_(a))(ROWS), "changes a tensor in place"),
    "random": (lambda: vmap(lambda a: a * torch.rand(3))(ROWS), "draws random numbers"),
    "recurrent": (
        lambda: vmap(lambda a: LSTM(a[None, None])[0])(ROWS),
        "torch.func.vmap has no rule for lstm",
    ),
    "function": (lambda: grad(lambda a: Doubled.apply(a).sum())(ROWS), "a custom autograd.Function has no rule"),
    "checkpoint": (
        lambda: grad(lambda a: checkpoint(torch.sin, a, use_reentrant=False).sum())(ROWS),
        "activation checkpointing has no rule",
    ),
    "forward mode": (
        lambda: jvp(lambda a: torch.cdist(a, a, p=3.0).sum(), (ROWS,), (ROWS,)),
        "cdist_forward has no derivative in forward mode",
    ),
    "second order": (
        lambda: vjp(grad(lambda a: torch.cdist(a, a, p=3.0).sum()), ROWS)[1](ROWS),
        "cdist_backward has no derivative of this order",
    ),
    "hook": (lambda: jvp(hooked, (ROWS,), (ROWS,)), "a tensor hook has no derivative in forward mode"),
    "sparse": (
        lambda: vmap(grad(lambda w, i: F.embedding(i, w, sparse=True).sum()), in_dims=(None, 0))(
            TABLE, torch.tensor([0, 1])
        ),
        "nn.Embedding(sparse=True)",
    ),
}


def kept_tensor():
    kept = []
    vmap(lambda a: (kept.append(a), a.sum())[1])(ROWS)
    return kept[0]


@pytest.mark.parametrize("name", MEANINGS)
@pytest.mark.filterwarnings("ignore")
def test_internal_texts_of_torch_are_put_plainly(name):
    fails, expected = MEANINGS[name]
    text = str(failure(fails))
    assert expected in text
    assert not {"vmap:", "functorch", "github", "Please", "dispatch"} & set(text.split())
    assert len(text) < 300


def test_a_long_text_is_cut():
    text = reason(ValueError("word " * 1000))
    assert len(text) < 450
    assert text.endswith("...")


def test_an_exception_whose_text_fails_is_named_by_its_class():
    class OddError(Exception):
        def __str__(self):
            return self.args[3]

    assert reason(OddError()) == "OddError"
