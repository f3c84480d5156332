"""What a shell offers on TAB: bash is asked as readline asks it, and the parser whether it takes what is offered."""

import argparse
import importlib.util
import io
import shutil
import subprocess
from contextlib import redirect_stderr

import pytest
import yaml

from ifloo.cli import completion
from ifloo.cli.help import COMMANDS
from tests.cli.running import CHECKOUT, CONFIG, done, ifloo

MODEL = "ifloo.models.LogisticRegression"
NAMES = sorted(path.stem for path in (CHECKOUT / "configs").glob("*.yaml"))
needs_shtab = pytest.mark.skipif(
    importlib.util.find_spec("shtab") is None, reason="shtab is not installed (pip install 'ifloo[completion]')"
)
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not there")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An empty folder but for the script."""
    folder = tmp_path_factory.mktemp("completion")
    said = done(ifloo(folder, "--completion", "bash"))
    assert said.err == ""
    (folder / "ifloo.bash").write_text(said.out)
    return folder


ASK = """
source ./ifloo.bash
registered=($(complete -p ifloo))
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
"${registered[-2]}" 2>/dev/null  # the function; compopt complains outside of a completion
printf '%s\\n' "${COMPREPLY[@]}"
"""


def offered(folder, *words):
    """Words offered for the last of these."""
    command = ["bash", "-c", ASK, "bash", *words]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    return ran.stdout.split()


@needs_bash
@needs_shtab
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ifloo", ""), list(COMMANDS)),
        (("ifloo", "infl"), ["influence"]),
        (("ifloo", "--"), ["--help", "--version", "--completion"]),
        (("ifloo", "influence", "--attribution.to"), ["--attribution.top_k", "--attribution.topk_only"]),
        (("ifloo", "loo", "--refit.rem"), ["--refit.removal"]),
        (("ifloo", "loo", "--refit.removal", ""), ["drop", "zero_weight"]),
        (("ifloo", "loo", "--overwrite", "--refit.ini"), ["--refit.init"]),
        (("ifloo", "fit", "--print_config", "--exp"), ["--experiment"]),
        (("ifloo", "fit", "--trainer.max_e"), ["--trainer.max_epochs"]),
        (("ifloo", "fit", "--config", ""), [*NAMES, "ifloo.bash"]),
        (("ifloo", "fit", "--config", "./i"), ["./ifloo.bash"]),
        (("ifloo", "fit", "--model", "ifloo.models.L"), [MODEL]),
        (("ifloo", "fit", "--model.l2_"), ["--model.l2_reg"]),
        (("ifloo", "fit", "--config", "mnist", "--data.source", ""), ["auto", "full", "embedded"]),
        (("ifloo", "influence", "--attribution.solver", "ifloo.solvers.L"), ["ifloo.solvers.LiSSA"]),
        (("ifloo", "influence", "--attribution.solver.de"), ["--attribution.solver.depth"]),
        (("ifloo", "influence", "--attribution.curvature", "ifloo.curvature.H"), ["ifloo.curvature.Hessian"]),
        (("ifloo", "report", "--checkpoint", "if"), ["ifloo.bash"]),
        (("ifloo", "nonsense", "--att"), []),
    ],
)
def test_words_that_begin_so(written, words, expected):
    assert offered(written, *words) == expected


@needs_bash
@needs_shtab
@pytest.mark.parametrize("group", ["attribution", "refit", "finish", "adapt"])
def test_all_settings_of_a_group_are_offered(written, group):
    printed = yaml.safe_load(done(ifloo(written, "influence", f"--config={CONFIG}", "--print_config")).out)
    words = offered(written, "ifloo", "influence", f"--{group[:3]}")
    found = {word.split(".")[1] for word in words if word.startswith(f"--{group}.")}
    assert found == set(printed[group])


def _plain(command):
    """What the scripts are made of: the options of a command, each with what may follow it."""
    listing = completion._Listing()
    (commands,) = (a for a in listing.plain("", [])._actions if isinstance(a, argparse._SubParsersAction))
    options = {action.option_strings[0]: action for action in commands.choices[command]._actions}
    return listing._parser(command), options


def _refused(parser, words):
    """What the parser says against these words, but for what they leave out."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            parser.parse_args(list(words), defaults=False)
    except SystemExit:
        return "" if "the following arguments are required" in said.getvalue() else said.getvalue()
    return ""


def _owners(options, option):
    """Words before an option that it is a setting of, one row for each class that has it."""
    owner = option.rpartition(".")[0]
    classes = options[owner].choices if owner in options and options[owner].choices else []
    taking = (options[option].help or "").removeprefix("of ").split(", ")
    named = [f"{owner}={one}" for one in classes if one.rpartition(".")[2] in taking]
    model = [] if option.startswith("--model") else [f"--model={MODEL}"]
    return [[*model, one] for one in named] or [model]


@needs_shtab
def test_the_parser_takes_every_value_that_is_offered():
    parser, options = _plain("influence")
    values = [(o, value) for o, action in options.items() if not o.endswith(".help") for value in action.choices or ()]
    assert ("--attribution.solver", "ifloo.solvers.CG") in values
    for option, value in values:
        said = [_refused(parser, [*first, f"{option}={value}"]) for first in _owners(options, option)]
        assert "" in said, said
    assert _refused(parser, [f"--model={MODEL}", "--attribution.dtype=float16"])  # it would say so


@needs_shtab
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one(tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not there")
    import shtab

    if shell not in shtab.SUPPORTED_SHELLS:
        pytest.skip(f"this shtab writes no script for {shell}")
    script = tmp_path / f"ifloo.{shell}"
    script.write_text(done(ifloo(tmp_path, "--completion", shell)).out)
    ran = subprocess.run([shell, "-n", script], capture_output=True, text=True, check=True)
    assert ran.stderr == ""


def test_without_shtab_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("ifloo.cli.completion.find_spec", lambda name: None)
    said = ifloo(tmp_path, "--completion", "bash")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "ifloo: error: --completion: the script is written by the package shtab, which is not installed.\n"
        "  Install it with: pip install 'ifloo[completion]'\n"
    )


@needs_shtab
@pytest.mark.parametrize(("words", "came"), [((), "nothing"), (("sh",), "sh"), (("bash", "zsh"), "bash zsh")])
def test_a_shell_that_is_none(tmp_path, words, came):
    import shtab

    said = ifloo(tmp_path, "--completion", *words)
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        f"ifloo: error: --completion: expected the name of one shell, came {came}.\n"
        f"  Give one of {', '.join(shtab.SUPPORTED_SHELLS)}.\n"
    )
