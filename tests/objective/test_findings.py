"""The form of a finding."""

from ifloo.errors import InputError, first_sentence, listed
from ifloo.objective.findings import Finding, Weight, heaviest_first


def test_the_four_lines():
    assert str(Finding("a thing", "here", "it breaks", "mend it", Weight.NOTE)) == (
        "note         a thing\nwhere        here\nconsequence  it breaks\nremedy       mend it"
    )


def test_heaviest_first_and_otherwise_in_order():
    weights = (Weight.NOTE, Weight.FATAL, Weight.WARNING, Weight.FATAL)
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
    assert listed(["a", "b", "c"]) == "a, b, c"
    assert listed(["a", "b", "c", "d"]) == "a, b, c, ... (4 in all)"
    assert first_sentence(RuntimeError("One thing. Another.\nMore")) == "One thing"
    assert first_sentence(RuntimeError()) == "RuntimeError"
