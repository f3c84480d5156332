"""The layer that gives the logits, found by watching a sample on its way to its loss."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.objective.logits_layer import first_sample, logits_layer
from ifloo.params import ParamSpace

D, C, H = 4, 3, 5


class Net(L.LightningModule):
    """Logits of inputs, and a mean loss of them."""

    def logits(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self.logits(batch[0]), batch[1])


class UnusedLast(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.lin, self.proj = nn.Linear(D, H), nn.Linear(H, C), nn.Linear(H, 8)

    def logits(self, x: Tensor) -> Tensor:
        return self.lin(torch.tanh(self.body(x)))


class HeadFirst(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(H, C)
        self.backbone = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, H))

    def logits(self, x: Tensor) -> Tensor:
        return self.lin(torch.tanh(self.backbone(x)))


class Penalised(HeadFirst):
    """A penalty of all weights, and a scale of the logits, are ways to the loss that are no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def logits(self, x: Tensor) -> Tensor:
        return self.scale * super().logits(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return super().training_step(batch, _) + 0.01 * sum(p.square().sum() for p in self.parameters())


class Auxiliary(HeadFirst):
    """A loss of hidden activations, which also reach the loss through the head."""

    def training_step(self, batch: Any, _: int) -> Tensor:
        h = self.backbone(batch[0])
        return F.cross_entropy(self.lin(torch.tanh(h)), batch[1]) + 0.1 * h.abs().mean()


class ConvHead(Net):
    """A segmentation of one row of pixels: the head is a convolution of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Conv1d(H, C, 1), nn.Conv1d(1, H, 3, padding=1)

    def training_step(self, batch: Any, _: int) -> Tensor:
        z = self.head(torch.tanh(self.body(batch[0].unsqueeze(1))))
        return F.cross_entropy(z, batch[1].unsqueeze(1).expand(-1, D))


class Wrapped(Net):
    """The module of a layer that a library wraps, on a frozen body."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"classifier": nn.Sequential(nn.Linear(D, C)), "body": nn.Linear(D, D)})
        self.net["body"].requires_grad_(False)

    def logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.net["body"](x)
        return self.net["classifier"](h)


class Recurrent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.rnn = nn.Linear(H, C), nn.LSTM(1, H)

    def logits(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x.T.unsqueeze(2))[0][-1])


def batches(n: int = 6) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(n, D, generator=draw), torch.arange(n) % C), batch_size=4)


def of(net: Net) -> str:
    module = Adapted(net)
    return logits_layer(module, first_sample(batches(), module))


FOUND = {
    "an unused layer registered last": (UnusedLast, "model.lin"),
    "a head registered first": (HeadFirst, "model.lin"),
    "with a penalty and a scale": (Penalised, "model.lin"),
    "with a loss of hidden activations": (Auxiliary, "model.lin"),
    "a convolution of one pixel": (ConvHead, "model.head"),
    "inside other modules, on a frozen body": (Wrapped, "model.net.classifier.0"),
    "on a recurrent layer": (Recurrent, "model.out"),
}


@pytest.mark.parametrize(("kind", "name"), FOUND.values(), ids=FOUND)
def test_the_layer_is_that_of_the_logits(kind, name):
    net = kind()
    before = {n: x.clone() for n, x in net.state_dict().items()}
    assert of(net) == name
    assert net.training
    assert all(torch.equal(x, before[n]) for n, x in net.state_dict().items())
    assert not any(layer._forward_hooks for layer in net.modules())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_found_where_nothing_is_recorded(mode):
    net = HeadFirst()
    with mode():
        assert of(net) == "model.lin"


class TwoHeads(UnusedLast):
    def training_step(self, batch: Any, _: int) -> Tensor:
        h = torch.tanh(self.body(batch[0]))
        return F.cross_entropy(self.lin(h), batch[1]) + self.proj(h).square().mean()


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(C, H), nn.Linear(H, C)
        self.head.weight = self.emb.weight

    def logits(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.emb((x[:, 0] > 0).long())))


class TiedLater(Tied):
    def __init__(self) -> None:
        super().__init__()
        emb = self.emb
        del self.emb
        self.emb = emb


class Frozen(HeadFirst):
    def __init__(self) -> None:
        super().__init__()
        self.lin.requires_grad_(False)


class Normalised(HeadFirst):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(C)

    def logits(self, x: Tensor) -> Tensor:
        return self.norm(super().logits(x))


NONE = {
    "two heads": (TwoHeads, "The outputs of 2 layers are logits (lin, proj): none of them is the last layer."),
    "tied to an embedding": (
        Tied,
        "The weight of the last layer head is also emb.weight: its inputs depend on it.",
    ),
    "tied to an embedding registered later": (
        TiedLater,
        "The weight of the last layer head is also emb.weight: its inputs depend on it.",
    ),
    "frozen": (
        Frozen,
        "No trainable linear map (nn.Linear, convolution of one pixel) gives the logits; last before the loss: lin "
        "(Linear).",
    ),
    "a norm after it": (
        Normalised,
        "No trainable linear map (nn.Linear, convolution of one pixel) gives the logits; last before the loss: norm "
        "(LayerNorm).",
    ),
}


@pytest.mark.parametrize(("kind", "text"), NONE.values(), ids=NONE)
def test_where_there_is_none_it_says_why(kind, text):
    with pytest.raises(InputError) as caught:
        of(kind())
    first = str(caught.value).splitlines()[0]
    assert first.replace("(proj, lin)", "(lin, proj)") == text


def test_a_second_name_of_tied_weights_is_refused_with_the_first():
    with pytest.raises(InputError) as caught:
        ParamSpace.of(Adapted(Tied()), ["head.*"])
    assert str(caught.value) == (
        "head.weight, which ['head.*'] match, is the same tensor as emb.weight (tied weights), and is attributed under "
        "that name.\n  Give ['head.*', 'emb.weight'] to attribute it in all its uses, or patterns that match neither."
    )
    assert ParamSpace.of(Adapted(Tied()), ["head.*", "emb.weight"]).names == ("model.emb.weight", "model.head.bias")
    assert ParamSpace.of(Adapted(Tied()), ["head.bias"]).names == ("model.head.bias",)
    assert ParamSpace.of(Adapted(Tied())).names == ("model.emb.weight", "model.head.bias")
