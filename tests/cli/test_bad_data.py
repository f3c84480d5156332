"""What is found during work: data that changed, ids that are none, solves that fail, a disk that is full."""

import errno
import logging
import os
import re
import shutil

import pytest

from tests.cli.running import contents, done, small

TOP_8 = "outputs/mnist/topk_ids_test_8.txt"


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\n\n4\n", "line 2: blank line.\n  Each line holds one training id. Delete this line."),
        ("3\nfour\n", "line 2: 'four' is not an id.\n  Each line holds one training id, a whole number."),
        (
            "3\n4\n3\n",
            "line 3: id 3 was given on line 1 already.\n  A sample can be removed once. Delete one of the two lines.",
        ),
        (
            "3\n100\n",
            "line 2: id 100 is not in the training data (100 samples, ids 0 to 99).\n"
            "  Were these ids made with other data, or with a larger train_limit?",
        ),
    ],
)
def test_ids_to_remove_are_checked_before_any_refit(copied, text, message):
    (copied / TOP_8).write_text(text)
    before = contents(copied)
    said = small(copied, "loo", "--refit.top_k=6")
    assert said.code == 2
    assert said.err == f"ifloo: error: {TOP_8}, {message}\n"
    assert contents(copied) == before


def test_data_of_other_content_are_refused(experiment):
    before = contents(experiment)
    said = small(experiment, "influence", "--data=tests.cli.broken.OtherPixels")
    assert said.code == 2
    first, *rest = said.err.splitlines()
    assert first.startswith(
        "ifloo: error: The training data are not those the checkpoint models/mnist_base.pth was fitted on: their "
        "content has SHA-256 "
    )
    assert rest == [
        "  Data now: embedded (asked for); at the fit: embedded.",
        "  Give the same data (--data.source, --data.root), or fit again.",
    ]
    assert contents(experiment) == before


@pytest.mark.parametrize(("command", "more"), [("fit", "--checkpoint=new.pth"), ("influence", "--output_dir=new")])
def test_nan_in_the_data_is_an_error(copied, command, more):
    before = contents(copied / "models")
    said = small(copied, command, "--data=tests.cli.broken.NotANumber", more)
    assert said.code == 2
    if command == "influence":  # of a checkpoint, whose data were others
        assert said.err.startswith("ifloo: error: The training data are not those the checkpoint ")
    else:
        assert said.err == (
            "ifloo: error: The training data hold NaN or infinity: batch 0, row 3, a tensor of shape [100, 784].\n"
            "  Clean the data; no score can be computed from them.\n"
        )
    assert contents(copied / "models") == before
    assert not list(copied.glob("new*/*.npz"))
    assert not (copied / "new.pth").exists()


def test_a_report_needs_scores_and_refits(copied):
    shutil.rmtree(copied / "outputs")
    said = small(copied, "report")
    assert said.code == 2
    assert said.err == (
        "ifloo: error: There are no influence scores at outputs/mnist/influences_test_0.npz.\n"
        "  Run `ifloo influence` for this test id first.\n"
    )
    said = small(copied, "loo")
    assert said.code == 2
    assert said.err == (
        "ifloo: error: There are no influence scores of this test: outputs/mnist/topk_ids_test_0.txt does not exist.\n"
        "  Run `ifloo influence` with these settings first.\n"
    )
    done(small(copied, "influence", "--attribution.top_k=1"))
    said = small(copied, "report")  # scores alone make a page, and no verdict
    assert said.code == 0, said.err
    assert "not verified yet: test 0, 8 (`ifloo loo` makes the refits)\n" in said.out
    assert not (copied / "outputs/mnist/verdict.json").exists()
    few = ("--attribution.test_ids=[8]", "--refit.top_k=1", "--refit.random=0", "--refit.null_refits=0")
    done(small(copied, "loo", *few))
    said = small(copied, "report", *few)
    assert said.code == 0, said.err
    assert "not verified yet: test 8 (`ifloo loo` makes the refits)\n" in said.out
    assert "not verified" in (copied / "outputs/mnist/report.html").read_text().lower()


def test_lissa_that_diverges_fails_and_says_which_scale_would_do(copied):
    lissa = ("--attribution.solver=ifloo.solvers.LiSSA", "--attribution.solver.scale=0.5", "--output_dir=new")
    said = small(copied, "influence", *lissa, "--attribution.test_ids=[8]", "--attribution.solver.repeats=2")
    assert said.code == 1
    assert said.err.split("ifloo: ", 1)[1] == (
        "failed: query 1 of 1: LiSSA diverged by step 50 with scale 0.5: batches of 1 have eigenvalues up to 14.53, "
        "and the recursion needs scale > 7.265.\n"
        "  Use scale 18.16 (or leave scale out: it is then estimated), or larger batches.\n"
    )
    assert [p.name for p in (copied / "new").iterdir()] == ["manifest.json"]


def test_cg_that_meets_negative_curvature_fails_and_says_how_much_damping_would_do(tmp_path):
    saddle = ("--model=tests.cli.broken.Saddle", "--model.optimizer=sgd", "--model.lr=0.0001")
    done(small(tmp_path, "fit", *saddle))
    plain = ("--attribution.solver=ifloo.solvers.CG", "--attribution.solver.preconditioner=null")
    said = small(tmp_path, "influence", *saddle, *plain, "--attribution.test_ids=[8]")
    assert said.code == 1
    assert said.err.split("ifloo: ", 1)[1] == (
        "failed: query 1 of 1: CG met non-positive curvature (-9.9e+01) at step 1; the smallest eigenvalue is about "
        "-1.0e+02.\n"
        "  The damped curvature is indefinite at this checkpoint: is it trained to a minimum?\n"
        "  Damping 150 would do (--attribution.damping 150). Or train to a minimum, or use curvature GaussNewton with "
        "damping.\n"
    )
    assert not list((tmp_path / "outputs" / "mnist").glob("influences*"))


def test_the_damping_that_a_failed_run_names_works_in_the_same_folder(tmp_path):
    saddle = ("--model=tests.cli.broken.Saddle", "--model.optimizer=sgd", "--model.lr=0.0001")
    done(small(tmp_path, "fit", *saddle))
    command = ("influence", *saddle, "--attribution.test_ids=[8]")
    said = small(tmp_path, *command)
    assert said.code == 1
    (named,) = re.findall(r"\((--attribution\.damping) (\S+)\)", said.err)
    done(small(tmp_path, *command, "=".join(named)))
    assert list((tmp_path / "outputs" / "mnist").glob("influences*"))


def test_an_unconverged_checkpoint_is_said_with_its_number(tmp_path, caplog):
    few_steps = ("--model.optimizer=sgd", "--model.lr=0.1", "--trainer.max_epochs=3")
    fit = done(small(tmp_path, "fit", *few_steps))
    measured = fit.out.split("|grad J| = ")[1].split()[0]
    with caplog.at_level(logging.WARNING, logger="ifloo"):
        done(small(tmp_path, "influence", *few_steps, "--attribution.test_ids=[8]"))
    (warning,) = [r.getMessage() for r in caplog.records if "not at a minimum" in r.getMessage()]
    number = warning.split("|grad J| = ")[1].split(",")[0]
    assert float(number) == pytest.approx(float(measured), rel=0.1)  # both printed, with two digits or three
    share = warning.split("about ")[1].split(". ")[0]
    difference = warning.split("relative difference ")[1].split(")")[0]
    assert float(difference) < 1e-14
    assert warning == (
        f"the checkpoint is not at a minimum: |grad J| = {number}, while one sample contributes about {share}. "
        "Influence is the derivative of the minimiser; away from it the scores predict no refit. Ruled out: another "
        f"loss than the one trained (relative difference {difference}), a branch on self.training or trainer.training, "
        "parameters that no optimizer has. Not ruled out: a fit that ended early (train longer; `ifloo fit` by "
        "LBFGS ends at 1e-10). The scores are a ranking at best."
    )


@pytest.mark.parametrize(
    ("command", "more", "file"),
    [
        ("fit", "--overwrite", "models/mnist_base.pth"),
        ("influence", "--attribution.top_k=9", "outputs/mnist/manifest.json"),
        ("report", "--refit.top_k=3", "outputs/mnist/verdict.json"),
    ],
)
def test_a_full_disk_leaves_the_old_file_whole(copied, monkeypatch, command, more, file):
    before = contents(copied)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        said = small(copied, command, more)
    assert said.code == 1
    assert said.err == (
        f"ifloo: failed: Could not write {file}: No space left on device.\n"
        "  The old file is unchanged. Free some space on that disk, or choose another place for the output, and run "
        "the same command again.\n"
    )
    after = contents(copied)
    assert {k: v for k, v in after.items() if "lightning_logs" not in k} == {
        k: v for k, v in before.items() if "lightning_logs" not in k
    }


def test_a_disk_that_fills_up_within_a_row_leaves_the_earlier_rows(copied, monkeypatch):
    before = contents(copied)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:10]))
        said = small(copied, "loo", "--refit.top_k=5")
    assert said.code == 1
    assert said.err.split("ifloo: ", 1)[1] == (
        "failed: Could not write outputs/mnist/loo_losses_test_0.jsonl: No space left on device.\n"
        "  The row was not added; the earlier rows are unchanged. Free some space on that disk, or choose another "
        "place for the output, and run the same command again.\n"
    )
    after = contents(copied)
    assert {name for name in before if before[name] != after[name]} == {"outputs/mnist/manifest.json"}
    done(small(copied, "loo", "--refit.top_k=5"))  # and with space again it goes on from there
    grown = (copied / "outputs/mnist/loo_losses_test_0.jsonl").read_bytes()
    assert grown.startswith(before["outputs/mnist/loo_losses_test_0.jsonl"])
    assert len(grown) > len(before["outputs/mnist/loo_losses_test_0.jsonl"])
