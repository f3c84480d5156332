"""Projects that cannot be scored: a fit ends as without the callback, and the message is of the true cause."""

import logging
import re

import lightning as L
import pytest
import torch

from ifloo.errors import InputError
from ifloo.stages import InfluenceCallback
from tests.cli.running import ifloo
from tests.gallery import unscorable
from tests.gallery.classifier import Data, samples

# What the message must hold: the cause, and what would make the project scorable.
REFUSED = {
    "GAN": ((unscorable.GAN, Data), "(?s)by hand.*automatic_optimization.*sample_losses"),
    "SimCLR": ((unscorable.SimCLR, Data), "(?s)contrastive"),
    "VAE": ((unscorable.VAE, Data), "(?s)(draws|random|two calls).*sample_losses"),
    "stream": ((unscorable.Classifier, unscorable.StreamData), "(?s)IterableDataset.*__getitem__"),
}
FIRST = Data.split()[1].indices[0]  # id of a test sample: its row of the whole set
CASES = [pytest.param(*parts, words, id=name) for name, (parts, words) in REFUSED.items()]


def fitted(folder, net, data, **settings):
    L.seed_everything(0)
    model, datamodule = net(), data()
    callback = InfluenceCallback(samples(2, 9), num_queries=1, output_dir=folder / "influence", **settings)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
        callbacks=[callback],
    )
    trainer.fit(model, datamodule=datamodule)
    trainer.save_checkpoint(folder / "c.ckpt")
    return model


@pytest.mark.parametrize(("net", "data", "words"), CASES)
def test_the_callback_warns_of_the_cause_and_lets_the_fit_go_on(net, data, words, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ifloo"):
        model = fitted(tmp_path, net, data)
    warned = [one.getMessage() for one in caplog.records if one.name.startswith("ifloo")]
    assert any(re.search(words, message) for message in warned), warned
    assert not list((tmp_path / "influence").rglob("influences_test_*.npz"))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(("net", "data", "words"), CASES)
def test_a_strict_callback_raises_the_cause(net, data, words, tmp_path):
    with pytest.raises(InputError, match=words):
        fitted(tmp_path, net, data, strict=True)


@pytest.mark.parametrize(("net", "data", "words"), CASES)
def test_a_command_exits_with_the_cause(net, data, words, tmp_path):
    fitted(tmp_path, net, data)
    named = [f"--{part}={cls.__module__}.{cls.__qualname__}" for part, cls in (("model", net), ("data", data))]
    outcome = ifloo(
        tmp_path,
        "influence",
        *named,
        "--ckpt_path=c.ckpt",
        "--trainer.accelerator=cpu",
        f"--attribution.test_ids=[{FIRST}]",
        "--attribution.damping=1.0",
    )
    assert outcome.code == 2, outcome.out + outcome.err
    assert re.search(words, outcome.err), outcome.err
