"""Lines about the engine: what the curvature is, and how it is damped."""

import logging

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ifloo.stages import AttributionSettings, InfluencePredictor


class TwoLayers(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.head(torch.tanh(self.body(batch[0]))), batch[1])


def _lines(caplog, **settings):
    draw = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(24, 3, generator=draw), torch.arange(24) % 2)
    queries = [x[:1] for x in data.tensors]
    predictor = InfluencePredictor(
        TwoLayers(), DataLoader(data, batch_size=24), AttributionSettings(**settings), queries=queries
    )
    with caplog.at_level(logging.INFO, logger="ifloo"):
        predictor.build_engine()
    return caplog.messages


def test_a_whole_network_is_named_by_its_size_and_its_damping(caplog):
    lines = _lines(caplog, damping=0.5)
    assert "curvature: Hessian, by products with all 26 attributed parameters." in lines
    assert "scores: forward-mode derivatives (jvp), curvature Hessian, damped by 0.5." in lines


def test_a_linear_head_is_named_with_its_damping(caplog):
    lines = _lines(caplog, damping=0.5, parameters=["head.*"])
    assert "scores: matrix products (linear head), curvature LinearHead, damped by 0.5." in lines
