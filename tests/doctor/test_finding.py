"""The form of a finding."""

from ifloo.doctor.finding import Finding, Severity, heaviest_first
from ifloo.errors import InputError, first_sentence, summarise


def test_the_four_lines():
    assert str(Finding("a thing", "here", "it breaks", "mend it", Severity.NOTE)) == (
        "note         a thing\nwhere        here\nconsequence  it breaks\nremedy       mend it"
    )


def test_heaviest_first_and_otherwise_in_order():
    weights = (Severity.NOTE, Severity.FATAL, Severity.WARNING, Severity.FATAL)
    made = [Finding(str(k), "", "", "", weight) for k, weight in enumerate(weights)]
    assert [one.what for one in heaviest_first(made)] == ["1", "3", "2", "0"]
    assert [one.fatal for one in made] == [False, True, False, True]


def test_errors_as_findings():
    ours = Finding.of_error(InputError("It is wrong.\n  Do this,\n  then that."), "here")
    assert (ours.what, ours.remedy) == ("It is wrong.", "Do this, then that.")
    theirs = Finding.of_error(KeyError("x"), "here")
    assert (theirs.what, theirs.remedy) == ("KeyError: 'x'", "Change what the first line names.")
    assert Finding.of_error(ValueError(), "here").what == "ValueError: "


def test_lists_and_sentences():
    assert summarise(["a", "b", "c"]) == "a, b, c"
    assert summarise(["a", "b", "c", "d"]) == "a, b, c, ... (4 in all)"
    assert first_sentence(RuntimeError("One thing. Another.\nMore")) == "One thing"
    assert first_sentence(RuntimeError()) == "RuntimeError"
