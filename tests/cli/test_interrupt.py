"""Ctrl-C ends a command with 130 and a word about going on, wherever it strikes."""

import pytest

from ifloo.cli import run as module


def at_once(_):
    raise KeyboardInterrupt


def within_a_trainer(_):
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise SystemExit(1)  # ruff: ignore[raise-without-from-inside-except] -- Lightning calls exit(1) in its handler


@pytest.mark.parametrize("strike", [at_once, within_a_trainer])
def test_ctrl_c_is_told_apart_from_failure(monkeypatch, capsys, strike):
    monkeypatch.setattr(module, "IflooCLI", strike)
    assert module.run(["fit"]) == 130
    assert capsys.readouterr().err == "ifloo: interrupted; the same command goes on from here.\n"


def test_any_other_exit_goes_through(monkeypatch):
    def parser_exit(_):
        raise SystemExit(2)

    monkeypatch.setattr(module, "IflooCLI", parser_exit)
    with pytest.raises(SystemExit):
        module.run(["fit"])
