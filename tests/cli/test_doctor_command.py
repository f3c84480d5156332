"""`ifloo doctor`: prints what it finds, heaviest first, and its exit code says whether a run would stop."""

import re

import pytest
import torch

from ifloo.cli import doctor
from ifloo.doctor.examine import quick_checks
from tests.cli.running import contents, done, ifloo, small

CHECKPOINT = "models/mnist_base.pth"
PLAIN = (
    "--model=tests.cli.examined.Network",
    "--data=tests.cli.examined.Rows",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)


def plain(folder, command, *more):
    return ifloo(folder, command, *PLAIN, *more)


def test_before_the_fit(tmp_path):
    assert done(small(tmp_path, "doctor")).out == (
        "LogisticRegression, MNISTDataModule, not trained yet (no checkpoint at models/mnist_base.pth): whether it "
        "converges is not known\n\nnothing found\n"
    )
    assert contents(tmp_path) == {}


def test_a_minimum(experiment):
    before = contents(experiment)
    said = done(small(experiment, "doctor"))
    assert re.fullmatch(
        r"LogisticRegression, MNISTDataModule, checkpoint models/mnist_base\.pth\n\nnothing found\n"
        r"converged: \|grad J\| = \d\.\de-1\d, while one sample contributes about \d\.\de-03\n",
        said.out,
    )
    assert contents(experiment) == before


def test_away_from_a_minimum(copied):
    content = torch.load(copied / CHECKPOINT, weights_only=True)
    content["state_dict"]["linear.weight"] += 0.1
    torch.save(content, copied / CHECKPOINT)
    said = done(small(copied, "doctor"))  # a warning: exit code 0
    assert re.fullmatch(
        r"LogisticRegression, MNISTDataModule, checkpoint models/mnist_base\.pth\n\n"
        r"warning        the checkpoint is not at a minimum: \|grad J\| = \S+\n"
        r"  where        models/mnist_base\.pth\n"
        r"  consequence  One sample contributes about \S+ to grad J\. Influence is the derivative of the\n"
        r"               minimiser; away from it the scores predict no refit\.\n"
        r"  remedy       Ruled out: .*\n(?: {15}\S.*\n)+\n",
        said.out,
    ), said.out
    assert re.search(
        r"Ruled out: another loss than the one trained \(relative difference \S+e-1\d\), a branch on self\.training or "
        r"trainer\.training, parameters that no optimizer has\. Not ruled out: a fit that ended early \(train longer; "
        r"`ifloo fit` by LBFGS ends at 1e-10\)\. The scores are a ranking at best\.",
        " ".join(said.out.split()),
    )


def test_data_of_another_fit(copied):
    content = torch.load(copied / CHECKPOINT, weights_only=True)
    content["ifloo"]["fingerprint"] = "0" * 64
    torch.save(content, copied / CHECKPOINT)
    said = small(copied, "doctor")
    assert said.code == 2
    words = " ".join(said.out.split())
    assert re.fullmatch(
        r"LogisticRegression, MNISTDataModule, checkpoint models/mnist_base\.pth "
        r"fatal The training data are not those the checkpoint models/mnist_base\.pth was fitted on: their content has "
        r"SHA-256 [0-9a-f]{16}\.\.\., fitted on 0{16}\.\.\.\. "
        r"where models/mnist_base\.pth "
        r"consequence A run stops here with this error\. "
        r"remedy Data now: embedded \(asked for\); at the fit: embedded\. Give the same data \(--data\.source, "
        r"--data\.root\), or fit again\.",
        words,
    )
    assert said.err.splitlines()[-1] == "ifloo: error: 1 of 1 findings stops a run."


def test_an_id_out_of_range_and_a_trainer_without_an_end(tmp_path):
    said = small(tmp_path, "doctor", "--attribution.test_ids=[0,20]", "--trainer.limit_train_batches=0.5")
    assert said.code == 2
    assert said.out.partition("\n\n")[2] == (
        "fatal          Refits train on all the data, as J is over all of it; got limit_train_batches = 0.5,\n"
        "               overfit_batches = 0.0.\n"
        "  where        trainer\n"
        "  consequence  A run stops here with this error.\n"
        "  remedy       To train on fewer samples limit the data module.\n\n"
        "fatal          test id 20 is out of range: the 20 test images in use have ids 0..19.\n"
        "  where        attribution.test_ids\n"
        "  consequence  A run stops here with this error.\n"
        "  remedy       Choose another id, or raise test_limit to 21 or more (it is 20).\n\n"
    )
    assert said.err.splitlines()[-1] == "ifloo: error: 2 of 2 findings stop a run."


def test_a_plain_module(tmp_path):
    said = plain(tmp_path, "doctor", "--model.dropout=0.2", "--model.decay=0.001")
    assert said.code == 2
    assert said.out == (
        "Network, Rows, not trained yet (no checkpoint at models/experiment_base.pth): whether it converges is not "
        "known\n\n"
        "fatal          Adam decays weights by 0.001, which J does not contain\n"
        "  where        Network.configure_optimizers\n"
        "  consequence  It minimises J + ½ · 0.001 · ‖θ‖²: the fit refuses it.\n"
        "  remedy       Give --adapt.l2 0.001.\n\n"
        "warning        dropout with p = 0.2\n"
        "  where        net.2\n"
        "  consequence  It is off while scoring and on in training: J of the whole network is not what was\n"
        "               minimised, so |grad J| need not be small at the end of the fit. Refits draw masks of\n"
        "               their own: cold refits do not reproduce the base fit and are refused.\n"
        "  remedy       Set p = 0 and fit again (a penalty regularises as well, and is part of J); else trust\n"
        "               the scores as far as refits confirm them.\n\n"
        "note           losses of samples taken from training_step, on batches of one\n"
        "  where        Network.training_step\n"
        "  consequence  A penalty that it adds counts as part of each ℓ_i and of the test loss L_t; the\n"
        "               minimum is the same, predicted and actual changes contain it.\n"
        "  remedy       None needed where it adds no penalty; else give the losses (--adapt.sample_losses)\n"
        "               and the penalty (--adapt.penalty or --adapt.l2) apart.\n\n"
    )
    assert said.err.splitlines()[-1] == "ifloo: error: 1 of 3 findings stops a run."


def test_the_remedy_is_one(tmp_path):
    said = done(plain(tmp_path, "doctor", "--model.decay=0.001", "--adapt.l2=0.001"))
    assert "decays weights" not in said.out
    done(plain(tmp_path, "fit", "--model.decay=0.001", "--adapt.l2=0.001"))
    said = done(plain(tmp_path, "doctor", "--model.decay=0.001", "--adapt.l2=0.001"))
    assert "warning        the checkpoint is not at a minimum: |grad J| = " in said.out  # after two epochs


WARNING = (
    "gradients clipped at norm 5 (trainer.gradient_clip_val): Harmless where no step near the end is clipped: the "
    "minimum of J is the same. Clipped steps are not those of J; refits repeat the clipping, scores do not contain "
    "it.\n"
    "  Leave it out, with a smaller learning rate if the fit then diverges."
)


def test_every_run_warns_once_at_its_door(tmp_path, caplog, monkeypatch):
    """Also where the setting is that of the fit, and comes from its checkpoint."""
    clip = "--trainer.gradient_clip_val=5"
    scored = ("--attribution.damping=1", "--attribution.top_k=3", "--refit.top_k=1")
    refitted = ("--refit.random=1", "--refit.null_refits=1", "--refit.init=cold", "--finish.after=never")

    def warned():
        texts = [r.getMessage() for r in caplog.records if r.name == "ifloo.cli.doctor"]
        caplog.clear()
        return texts

    looked: list[str | None] = []
    monkeypatch.setattr(
        doctor, "quick_checks", lambda subject: looked.append(subject.checkpoint) or quick_checks(subject)
    )
    done(plain(tmp_path, "pipeline", clip, *scored, *refitted, "--refit.replicas=1"))
    assert warned() == [WARNING]
    assert looked == [None, "models/experiment_base.pth"]  # before the fit, and after it; refits change nothing of it
    done(plain(tmp_path, "influence", *scored))
    assert warned() == [WARNING]
    done(plain(tmp_path, "loo", *scored, *refitted))
    assert warned() == [WARNING]
    done(plain(tmp_path, "fit", clip, *refitted, "--overwrite"))
    assert warned() == [WARNING]


def test_a_sound_model_is_not_warned_of(experiment, caplog):
    done(small(experiment, "influence"))
    assert [r.getMessage() for r in caplog.records if r.name == "ifloo.cli.doctor"] == []


@pytest.mark.parametrize("command", ["fit", "pipeline"])
def test_samples_that_no_seed_fixes_stop_a_run(tmp_path, command):
    said = plain(tmp_path, command, "--data.noisy=true")
    assert said.code == 2
    first, *others = said.err.splitlines()[-3:]
    assert re.fullmatch(
        r"ifloo: error: Rows\.train_dataloader\(\): two reads of training sample \d+ differ, by up to \d\.\d+\.", first
    )
    assert others == [
        "  Scores would be of another sample than was trained on, and of another one each time: its random numbers do "
        "not come from the generators of torch, numpy and Python, which are seeded for each sample.",
        "  Draw them from these generators; or turn random transforms off, for the fit too.",
    ]
    assert not (tmp_path / "models").exists()
