"""A checkpoint from elsewhere gives arguments, and does not choose what is imported."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from tests.cli import loading_project as project
from tests.cli.running import done, ifloo
from tests.cli.test_loading_arguments import FROM

HERE = __name__


class Asking(project.Softmax):
    """A module whose further arguments a class or a callable may be."""

    received: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        width: int,
        classes: int,
        f: Callable[..., Any] | None = None,
        m: nn.Module | None = None,
        either: Callable[..., Any] | str = "relu",
        anything: Any = None,
        many: list[type] | None = None,
        name: str = "",
        untyped="",
    ) -> None:
        Asking.received = {"f": f, "m": m, "either": either, "anything": anything, "untyped": untyped, "name": name}
        super().__init__(width, classes)


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType | None:
    """A module beside the project whose import would run its code."""
    (tmp_path / "named_by_a_file.py").write_text(
        "from torch import nn\nfrom pathlib import Path\nPath('ran').touch()\nclass Net(nn.Module): ...\n"
        "def run(*args): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("named_by_a_file", None)
    return None


def checkpoint(folder: Path, **arguments: object) -> None:
    project.fitted(folder, project.Softmax(4, 3), project.Rows(40))
    content = torch.load(folder / "c.ckpt", weights_only=True)
    content["hyper_parameters"] = {"width": 4, "classes": 3, **arguments}
    torch.save(content, folder / "c.ckpt")


MADE = (f"--model={HERE}.Asking", f"--data={project.NAME}.Rows")
CLASS = {"class_path": "named_by_a_file.Net"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("f", CLASS),
        ("f", "named_by_a_file.run"),
        ("m", CLASS),
        ("m", "named_by_a_file.Net"),
        ("anything", {"deep": [{"deeper": CLASS}]}),
        ("either", CLASS),
        ("many", ["named_by_a_file.Net"]),
        ("untyped", CLASS),
        ("name", CLASS),
    ],
)
def test_what_a_file_names_is_not_imported(name, value, tmp_path, evil):
    checkpoint(tmp_path, **{name: value})
    refused = ifloo(tmp_path, "influence", *MADE, *FROM)
    assert refused.code == 2, refused.err
    assert f"model.{name} = " in refused.err
    assert f"--model.{name}=..." in refused.err
    assert "--trust_checkpoint" in refused.err
    assert "named_by_a_file" not in sys.modules
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("either", "named_by_a_file.run"),
        ("anything", '{"class\\u005fpath": "named_by_a_file.Net"}'),
        ("untyped", "{class_path: named_by_a_file.Net}"),
        ("anything", {"text": "named_by_a_file.Net"}),
        ("name", "named_by_a_file.run"),
    ],
)
def test_text_that_a_parameter_admits_is_given_as_it_is(name, value, tmp_path, evil):
    checkpoint(tmp_path, **{name: value})
    done(ifloo(tmp_path, "influence", *MADE, *FROM))
    assert Asking.received[name] == value
    assert "named_by_a_file" not in sys.modules


def test_a_trusted_file_names_what_is_imported(tmp_path, evil):
    checkpoint(tmp_path, f="named_by_a_file.run", m=CLASS)
    trusted = done(ifloo(tmp_path, "influence", *MADE, *FROM, "--trust_checkpoint"))
    assert "--trust_checkpoint: model.f of c.ckpt may import named_by_a_file.run" in trusted.err
    assert "--trust_checkpoint: model.m of c.ckpt may import named_by_a_file.Net" in trusted.err
    assert type(Asking.received["m"]).__name__ == "Net"


def test_a_flag_takes_the_place_of_a_name_in_the_file(tmp_path, evil):
    checkpoint(tmp_path, f="named_by_a_file.run")
    done(ifloo(tmp_path, "influence", *MADE, *FROM, "--model.f=torch.nn.functional.relu"))
    assert Asking.received["f"] is nn.functional.relu
    assert "named_by_a_file" not in sys.modules


@pytest.mark.parametrize(
    ("name", "value"), [("width", "abc"), ("classes", [1, 2]), ("name", 5), ("f", 3), ("m", {"a": 1})]
)
def test_an_argument_of_another_type_is_an_error_of_the_file(name, value, tmp_path):
    checkpoint(tmp_path, **{name: value})
    refused = ifloo(tmp_path, "influence", *MADE, *FROM)
    assert refused.code == 2, refused.err
    assert f"model.{name}" in refused.err
    assert "c.ckpt" in refused.err
