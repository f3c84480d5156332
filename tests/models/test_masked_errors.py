"""No property of a module of ifloo hides an AttributeError of the user's code as the absence of the property."""

import importlib
import inspect
import pkgutil

import lightning as L
import pytest
from torch import nn

import ifloo
from ifloo.errors import InputError
from ifloo.models import Adapted

# Properties that run no code of the user: they read what ifloo or Lightning itself keeps.
PLAIN = {
    *(("Adapted", name) for name in ("_current_fx_name", "fit_described", "trainer")),
    ("InfluencePredictor", "engine"),
}


def modules():
    names = [one.name for one in pkgutil.walk_packages(ifloo.__path__, "ifloo.") if "__main__" not in one.name]
    members = [member for name in names for _, member in inspect.getmembers(importlib.import_module(name))]
    return {one for one in members if inspect.isclass(one) and issubclass(one, nn.Module)}


def properties():
    own = {kind for one in modules() for kind in one.__mro__ if kind.__module__.startswith("ifloo.")}
    found = {(kind.__name__, name) for kind in own for name, value in vars(kind).items() if isinstance(value, property)}
    return sorted(found - PLAIN)


class Net(L.LightningModule):
    """A module whose own hparams fail; nn.Module masks the error once by itself."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(2, 1)

    @property
    def hparams(self):
        return self.settings.hidden.size

    @property
    def hparams_initial(self):
        return self.hparams

    @property
    def settings(self):
        return None

    def training_step(self, batch, _):
        return self.lin(batch).mean()


def test_the_properties_are_found():
    assert properties() == [("Adapted", "hparams"), ("Adapted", "hparams_initial")]


@pytest.mark.parametrize(("owner", "name"), properties())
def test_the_error_of_the_user_comes_out_with_its_line(owner, name):
    assert owner == "Adapted"  # another owner needs a case of its own here
    with pytest.raises(InputError) as caught:
        getattr(Adapted(Net()), name)
    line = inspect.getsourcelines(Net.hparams.fget)[1] + 2
    assert str(caught.value) == (
        f"{name} of Net failed: AttributeError: 'NoneType' object has no attribute 'hidden' "
        f"(tests/models/test_masked_errors.py:{line})"
    )
