"""How a base model was trained, as its checkpoint says it and as later commands say it again."""

import torch

from tests.cli.running import contents, done
from tests.cli.test_doctor_command import plain

CLIPPED = ("--trainer.gradient_clip_algorithm=value", "--trainer.gradient_clip_val=0.5", "--finish.after=never")
SCORED = ("--attribution.damping=1", "--attribution.top_k=3")


def test_clipping_by_value_is_stored_in_plain_words_and_compared(tmp_path):
    done(plain(tmp_path, "fit", *CLIPPED))
    recipe = torch.load(tmp_path / "models/experiment_base.pth", weights_only=True)["ifloo"]["recipe"]
    assert (recipe["gradient_clip_algorithm"], recipe["gradient_clip_val"]) == ("value", 0.5)
    done(plain(tmp_path, "influence", *SCORED))
    done(plain(tmp_path, "influence", *SCORED, *CLIPPED, "--trainer.precision=32"))
    done(plain(tmp_path, "fit", *CLIPPED))  # the same settings: what is there is no contradiction
    before = contents(tmp_path)
    said = plain(tmp_path, "influence", *SCORED, "--trainer.gradient_clip_algorithm=norm", "--trainer.precision=64")
    assert said.code == 2
    assert said.err.endswith(
        "ifloo: error: The checkpoint models/experiment_base.pth was fitted with other settings.\n"
        "  trainer.precision: fitted with '32-true', asked '64-true'\n"
        "  trainer.gradient_clip_algorithm: fitted with 'value', asked 'norm'\n"
        "  Leave these settings out (they then come from the checkpoint), name another --checkpoint, or fit again "
        "(`ifloo fit` or `ifloo pipeline` with --overwrite).\n"
    ), said.err
    assert contents(tmp_path) == before
