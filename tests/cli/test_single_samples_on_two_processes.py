"""Losses that are computed one sample at a time have the same scores on one process and on two."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import CHECKOUT
from tests.conftest import LONG

PROJECT = """
import lightning as L, torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

class Sentences(Dataset):
    def __init__(self, first, n): self.first, self.n = first, n
    def __len__(self): return self.n
    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(self.first + i)
        tokens = torch.randint(1, 6, (int(torch.randint(2, 7, (1,), generator=draw)),), generator=draw)
        return tokens, (tokens + 1) % 3

def padded(samples):
    tokens, tags = zip(*samples)
    return pad_sequence(tokens, batch_first=True), pad_sequence(tags, batch_first=True, padding_value=-100)

class Data(L.LightningDataModule):
    def train_dataloader(self): return DataLoader(Sentences(0, 31), batch_size=8, collate_fn=padded, shuffle=True)
    def val_dataloader(self): return DataLoader(Sentences(100, 5), batch_size=5, collate_fn=padded)

class Tagger(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(6, 3, dtype=torch.float64)
        self.rnn = nn.LSTM(3, 3, batch_first=True, dtype=torch.float64)
        self.out = nn.Linear(3, 3, dtype=torch.float64)
    def training_step(self, batch, _):
        tokens, tags = batch
        z = self.out(self.rnn(self.emb(tokens))[0])
        return F.cross_entropy(z.flatten(0, 1), tags.flatten(), ignore_index=-100)
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=0.5)
"""
FIT = """
import lightning as L, tagger
L.seed_everything(0)
trainer = L.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(tagger.Tagger(), datamodule=tagger.Data())
trainer.save_checkpoint("tagger.ckpt")
"""
FLAGS = (
    *("--model=tagger.Tagger", "--data=tagger.Data", "--ckpt_path=tagger.ckpt", "--trainer.accelerator=cpu"),
    *("--attribution.test_ids=[0, 3]", "--attribution.damping=1.0"),
)


def _run(folder: Path, *command: str) -> str:
    env = {**os.environ, "PYTHONPATH": f"{CHECKOUT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=LONG
    )
    assert found.returncode == 0, found.stderr
    return found.stderr


@pytest.mark.slow  # two processes that import torch
def test_the_scores_are_those_of_one_process(tmp_path):
    (tmp_path / "tagger.py").write_text(PROJECT)
    _run(tmp_path, "-c", FIT)
    influence = ("-m", "ifloo", "influence", *FLAGS)
    said = _run(tmp_path, *influence, "--output_dir=one")
    assert "losses are computed one sample at a time" in said
    assert "weighs its samples" in said
    _run(tmp_path, *influence, "--output_dir=two", "--trainer.strategy=ddp", "--trainer.devices=2")
    for test in (0, 3):
        one, two = (np.load(tmp_path / name / f"influences_test_{test}.npz") for name in ("one", "two"))
        np.testing.assert_allclose(two["scores"], one["scores"], rtol=1e-6)
        np.testing.assert_array_equal(two["train_ids"], one["train_ids"])
