"""A gradient reversal: products with the Hessian are not the derivative of the training gradient, and all says so."""

import json

import torch
import torch.nn.functional as F
from torch import nn

from ifloo.stages import InfluenceCallback
from tests.practice.base import D, Project, Rows, Softmax

SENTENCE, LIMIT = "products with the Hessian (double backward) differ by ", "may be off by more than that"
FEW_REFITS = (
    "--refit.top_k=2",
    "--refit.random=2",
    "--refit.null_refits=2",
    "--trainer.logger=false",
    "--finish.after=never",
    "--trainer.max_epochs=3",
)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -0.7 * gradient


class Reversal(Softmax):
    def __init__(self):
        super().__init__()
        self.body, self.lin, self.domain = (nn.Linear(a, b, dtype=D) for a, b in ((4, 3), (3, 3), (3, 2)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        h = torch.tanh(self.body(x))
        domain = F.cross_entropy(self.domain(_Reverse.apply(h)), (x[:, 0] > 0).long())
        return F.cross_entropy(self.lin(h), y) + domain + self.l2()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def test_commands_and_files_carry_the_sentence(tmp_path):
    project = Project.trained(tmp_path, Reversal, max_epochs=200)
    settings = ("--attribution.damping=1.0", "--attribution.top_k=3")
    done = project.influence(*settings)
    assert done.code == 0, done.err
    assert SENTENCE in done.err
    assert LIMIT in done.err
    folder = tmp_path / "outputs/experiment"
    sections = json.loads((folder / "manifest.json").read_text())
    assert SENTENCE in sections["influence"]["recorded"]["objective"]["text"]
    refitted = project.run("loo", "--attribution.test_ids=[0]", *settings, *FEW_REFITS)
    assert refitted.code == 0, refitted.err
    reported = project.run("report", "--attribution.test_ids=[0]", *settings, *FEW_REFITS)
    assert reported.code == 0, reported.err
    assert SENTENCE in json.loads((folder / "verdict.json").read_text())["objective"]["text"]
    assert SENTENCE in (folder / "report.html").read_text()
    events = b"".join(path.read_bytes() for path in tmp_path.rglob("events.out.tfevents*"))
    assert LIMIT.encode() in events  # which escape other signs


def test_the_table_of_the_callback_carries_the_sentence(tmp_path, capsys):
    callback = InfluenceCallback(
        Rows().val_dataloader(), num_queries=1, output_dir=tmp_path / "o", parameters=("*",), damping=1.0
    )
    Project.trained(tmp_path, Reversal, max_epochs=50, callbacks=[callback])
    table = capsys.readouterr().out
    assert "most helpful" in table
    assert SENTENCE in table
    assert LIMIT in table
