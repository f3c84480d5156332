"""Refits through the command: many in one fit are those one by one."""

import re

import pytest

from tests.cli.running import done, small
from tests.cli.test_pipeline import lines

SGD = (
    "--model.optimizer=sgd",
    "--model.momentum=0.9",
    "--data.batch_size=30",
    "--data.shuffle=true",
    "--trainer.max_epochs=5",
    "--attribution.test_ids=[0, 8]",
)
FILES = ("loo_losses_test_0.jsonl", "loo_losses_test_8.jsonl", "null/loo_losses_test_8.jsonl")
NUMBERS = {"seconds", "astray", "loss", "grad_norm", "objective", "delta_error"}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Folder of a model trained by mini-batches, and refits of it one by one."""
    folder = tmp_path_factory.mktemp("replicas")
    done(small(folder, "fit", *SGD))
    return folder


def refits(folder, name, *how):
    """The rows of each file."""
    how = (*SGD, f"--output_dir={name}", *how)
    done(small(folder, "influence", *how))
    done(small(folder, "loo", *how))
    return [lines(folder / name / file) for file in FILES]


@pytest.mark.parametrize("init", ["warm", "cold"])
def test_rows_are_those_of_refits_one_by_one(fitted, init, caplog):
    start = f"--refit.init={init}"
    alone = refits(fitted, f"alone_{init}", start, "--refit.replicas=1")
    together = refits(fitted, f"together_{init}", start)
    said = [m for m in caplog.messages if m.startswith("refits:")]
    assert said[0] == "refits: one by one (refit.replicas = 1)"
    assert re.match(r"refits: \d+ at once, as copies in one fit \(not by Newton steps from the base model: ", said[1])
    for ours, theirs in zip(together, alone, strict=True):
        assert len(ours) == len(theirs) > 1
        for a, b in zip(ours, theirs, strict=True):
            assert a.keys() == b.keys()
            assert {k: a[k] for k in a.keys() - NUMBERS} == {k: b[k] for k in b.keys() - NUMBERS}
            for name in a.keys() & (NUMBERS - {"seconds"}):
                assert a[name] == pytest.approx(b[name], rel=0, abs=1e-12)
    losses = [row["loss"] for row in alone[0]]
    assert len(set(losses)) == len(losses)


def test_replicas_of_what_cannot_be_stacked_are_an_error(fitted):
    how = ("--output_dir=clipped", "--checkpoint=clipped.pth", "--trainer.gradient_clip_val=0.5", *SGD)
    done(small(fitted, "fit", *how))
    done(small(fitted, "influence", *how))
    failed = small(fitted, "loo", *how, "--refit.replicas=4")
    assert failed.code == 2
    assert failed.err.endswith(
        "ifloo: error: refit.replicas = 4 asks for 4 refits in one fit, which would not give what refits one by one "
        "give:\n"
        "  by Newton steps from the base model: SGD fits are not finished to the minimum (finish.after = lbfgs)\n"
        "  as copies in one fit: gradient_clip_val = 0.5 clips by the norm over all replicas "
        "(gradient_clip_algorithm value would not)\n"
        "  Leave refit.replicas out, or set it to 1.\n"
    )
