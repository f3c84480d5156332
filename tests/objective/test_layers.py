"""Facts about layers and hooks: which layers draw random numbers in the mode they are in, which methods are own."""

import pytest
from torch import nn

from ifloo.models.hooks import overridden
from ifloo.objective.layers import BATCH_HOOKS, RandomLayer, random_layers


@pytest.mark.parametrize(
    ("layer", "share"),
    [
        (nn.Dropout(0.1), 0.1),
        (nn.AlphaDropout(0.2), 0.2),
        (nn.MultiheadAttention(4, 2, dropout=0.3), 0.3),
        (nn.LSTM(4, 4, num_layers=2, dropout=0.4), 0.4),
        (nn.GRU(4, 4, num_layers=2, dropout=0.5), 0.5),
        (nn.RNN(4, 4, num_layers=2, dropout=0.6), 0.6),
    ],
    ids=lambda x: type(x).__name__,
)
def test_dropout_counts_in_training_mode(layer, share):
    assert random_layers(layer) == [RandomLayer(type(layer).__name__, "dropout", "set it to 0", share)]
    assert random_layers(layer.eval()) == []


def test_dropout_that_never_drops():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        single = nn.LSTM(4, 4, num_layers=1, dropout=0.5)
    layers = [nn.Dropout(0.0), nn.RReLU(0.2, 0.2), single, nn.MultiheadAttention(4, 2), nn.LSTMCell(4, 4)]
    assert random_layers(nn.ModuleList(layers)) == []


def test_dropout_of_a_transformer_is_that_of_its_parts():
    layer = nn.TransformerDecoderLayer(4, 2, 8, dropout=0.1)
    paths = ["self_attn", "multihead_attn", "dropout", "dropout1", "dropout2", "dropout3"]
    assert {one.path for one in random_layers(layer)} == set(paths)
    layer.self_attn.eval()
    assert {one.path for one in random_layers(layer)} == set(paths) - {"self_attn"}


class Base:
    def on_before_batch_transfer(self, batch):
        return batch

    def on_after_batch_transfer(self, batch):
        return batch


class Own(Base):
    def on_after_batch_transfer(self, batch):
        return None


class Inheriting(Own):
    pass


def test_methods_of_ones_own():
    assert overridden(Base(), BATCH_HOOKS, Base) == overridden(None, BATCH_HOOKS, Base) == []
    assert overridden(Inheriting(), BATCH_HOOKS, Base) == ["on_after_batch_transfer"]
    assert overridden(Inheriting(), BATCH_HOOKS, Base, Own) == []
    base = Base()
    base.on_before_batch_transfer = lambda batch: None  # set on the object, as by an adapter
    assert overridden(base, BATCH_HOOKS, Base) == ["on_before_batch_transfer"]
