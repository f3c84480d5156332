"""Artificial results, written by the report for TensorBoard and read back from its files."""

import numpy as np
import torch
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.data import DataLoader, Dataset

from ifloo.models import LogisticRegression
from ifloo.report import Reporter, SampleGradients
from ifloo.report.tensorboard import event_file
from ifloo.report.tensorboard.gradient_projection import Sketch
from ifloo.store import LossFile, LossRow, Manifest, StoredSelfInfluence, influences, self_influence
from ifloo.store import settings_stamp as stamp
from ifloo.verdict import Verdict
from ifloo.verdict.label_errors import SECTION, self_influences
from tests.verdict.results import ACTUAL, BASE, IDS, REMOVED, SCORES, N, T, stored

EVIL = "</script><img src=x onerror=alert(1)> **b** [a](javascript:1) | `c`\t#1\n\n# 你\u202e_x_ &lt; \ud800 \x07end"
SANITISED = "</script><img src=x onerror=alert(1)> **b** [a](javascript:1) | `c` #1 # 你_x_ &lt; end"
SELF = {name: np.random.default_rng(k).random(N) for k, name in enumerate(("last_layer", "loss"))}
OTHER = T + 2


class Pictured:
    """Data set with captions and grey images; one sample has no image."""

    ids = torch.from_numpy(IDS)

    def caption(self, id_):
        return EVIL if id_ == IDS[3] else f"class {id_ % 3}"

    def picture(self, id_):
        return None if id_ == IDS[5] else np.full((8, 6), id_ % 256, np.uint8)


class Talk:
    """Data set with questions and answers, without images."""

    ids = torch.from_numpy(IDS)

    def question(self, id_):
        return EVIL

    def answer(self, id_):
        return f"yes {id_}"

    def pictures(self, id_):
        return []


class Data:
    def __init__(self, kind=Pictured):
        self.train_set = self.test_set = kind()


class Rows(Dataset):
    """Data set of the features of the training samples, in order."""

    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(N) % 3

    def __init__(self, ids=IDS):
        self.ids = torch.from_numpy(ids)

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.labels[i], "idx": self.ids[i]}


def gradients(ids=IDS, **settings):
    torch.manual_seed(0)
    module = LogisticRegression(num_features=4, num_classes=3, bias=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return SampleGradients(module, DataLoader(Rows(ids), batch_size=9, shuffle=True), **settings)


def truth(source):
    """Returns ∇ℓ_i of each sample by a separate backward pass, and the projection as a matrix [p, d]."""
    weight, bias = source.module.parameters()
    found = []
    for x, y in zip(Rows.x, Rows.labels, strict=True):
        loss = torch.nn.functional.cross_entropy((weight @ x + bias)[None], y[None])
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, (weight, bias))]))
    S = Sketch(source.size, source.dimensions, source.seed)(torch.eye(source.size, dtype=torch.float64))
    return torch.stack(found), S


def add_test(results, t=OTHER, refits=True):
    """Adds another test whose scores are a thousand times as large."""
    scored = stored(1000 * SCORES[::-1], results.influence, test_id=t, residual=3e-11)
    influences.save(results.layout.scores(t), scored)
    if refits:
        file = LossFile(results.layout.loo_losses(t))
        for i, change in [(-1, 0.0), *zip(REMOVED.tolist(), (ACTUAL[::-1] * 1000).tolist(), strict=True)]:
            file.add(LossRow(i, 2.0 + change, grad_norm=5e-11, delta_error=1e-9))


def add_self_influence(results):
    compared = {**BASE, "damping": 1e-3}
    Manifest.at(results.layout.manifest).record(SECTION, compared, {})
    order = np.argsort(-IDS)  # an order that differs from that of the scores
    rankings = {name: value[order] for name, value in SELF.items()}
    self_influence.save(
        results.layout.self_influence,
        StoredSelfInfluence(
            IDS[order], tracin=None, damping=1e-3, definitions="", settings=stamp(compared), **rankings
        ),
    )


def write(results, folder, tests=(T,), outcomes=None, data=None, gradients=None):
    """Writes the TensorBoard report without its figures."""
    data = data or Data()
    refitted = [t for t in tests if results.layout.loo_losses(t).exists()]
    verdict = Reporter(results.layout, data, folder).verdict(refitted, 6) if refitted else Verdict({})
    scored = {t: influences.load(results.layout.scores(t)) for t in tests}
    own = self_influences(results.layout)
    board = event_file.TensorBoardReport(results.layout, data, folder, outcomes or {}, gradients, own)
    board.write(scored, verdict, {})


class Board:
    """Event file of a report, read back."""

    def __init__(self, results, folder, tests=(T,), outcomes=None, **settings):
        write(results, folder, tests, outcomes or {}, **settings)
        self._read(folder)

    @classmethod
    def of(cls, folder):
        made = cls.__new__(cls)
        made._read(folder)
        return made

    def _read(self, folder):
        self.folder = folder
        (path,) = folder.glob("*.report")
        sizes = dict.fromkeys(("scalars", "images", "histograms", "tensors", "compressedHistograms"), 0)
        self.events = EventAccumulator(str(path), size_guidance=sizes)
        self.events.Reload()
        self.tags = self.events.Tags()

    def series(self, tag):
        return [[one.step, one.value] for one in self.events.Scalars(tag)]

    def histogram(self, tag, step=0):
        (found,) = (one.histogram_value for one in self.events.Histograms(tag) if one.step == step)
        return found

    def text(self, tag):
        (event,) = self.events.Tensors(f"{tag}/text_summary")
        return event.tensor_proto.string_val[0].decode()

    def plugin(self, tag):
        data = HParamsPluginData()
        data.ParseFromString(self.events.SummaryMetadata(tag).plugin_data.content)
        return data

    def projector(self):
        config = text_format.Parse((self.folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
        (one,) = (each for each in config.embeddings if each.tensor_name == "sample_gradients:00000")
        head, *rows = [line.split("\t") for line in (self.folder / one.metadata_path).read_text().splitlines()]
        tensors = np.loadtxt(self.folder / one.tensor_path, ndmin=2)
        return one, {name: [row[k] for row in rows] for k, name in enumerate(head)}, tensors


def single(values):
    return np.asarray(values, np.float32).astype(float).tolist()
