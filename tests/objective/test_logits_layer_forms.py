"""The layer that gives the logits, in heads of other forms: with parameters after it, wrapped, shared or normalised."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.objective.logits_layer import first_sample, logits_layer

D, C, H = 4, 3, 5


class Net(L.LightningModule):
    """A body, a linear head, and a loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.lin = nn.Linear(D, H), nn.Linear(H, C)

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))

    def logits(self, x: Tensor) -> Tensor:
        return self.lin(self.features(x))

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self.logits(batch[0]), batch[1])


class ElementwiseHead(Net):
    """A head without a layer: the sum of products of features with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(C, H)), nn.Parameter(torch.zeros(C))

    def logits(self, x: Tensor) -> Tensor:
        return (self.features(x).unsqueeze(1) * self.w).sum(2) + self.b


class EinsumHead(ElementwiseHead):
    def logits(self, x: Tensor) -> Tensor:
        return torch.einsum("bh,ch->bc", self.features(x), self.w)


class CosineHead(ElementwiseHead):
    def logits(self, x: Tensor) -> Tensor:
        return 16 * F.linear(F.normalize(self.features(x)), F.normalize(self.w))


class BiasApart(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(C))

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) + self.b


class PenalisedBiasApart(BiasApart):
    def training_step(self, batch: Any, _: int) -> Tensor:
        return super().training_step(batch, _) + 0.01 * sum(p.square().sum() for p in self.parameters())


class ScalePerClass(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(C))

    def logits(self, x: Tensor) -> Tensor:
        return self.scale * super().logits(x)


class NormOfFunctions(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(C))

    def logits(self, x: Tensor) -> Tensor:
        return F.layer_norm(super().logits(x), (C,), self.gain)


class CosineLinear(nn.Linear):
    """A linear layer by its class alone."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight))


class CosineLayer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lin = CosineLinear(H, C)


class HookedOutput(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lin.register_forward_hook(lambda _layer, _given, out: out.square())


class Attention(Net):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(C, 1)

    def logits(self, x: Tensor) -> Tensor:
        z = super().logits(x).unsqueeze(0)
        return self.attention(z, z, z)[0].squeeze(0)


REFUSED = {
    "a sum of products": (ElementwiseHead, "Parameters b, w act on the output of layer body"),
    "an einsum": (EinsumHead, "Parameter w acts on the output of layer body"),
    "a cosine head": (CosineHead, "Parameter w acts on the output of layer body"),
    "a bias apart": (BiasApart, "Parameter b acts on the output of layer lin"),
    "a bias apart, and a penalty of all weights": (PenalisedBiasApart, "Parameter b acts on the output of layer lin"),
    "a scale for each class": (ScalePerClass, "Parameter scale acts on the output of layer lin"),
    "a norm by a function": (NormOfFunctions, "Parameter gain acts on the output of layer lin"),
    "a layer that is linear by its class alone": (CosineLayer, "last before the loss: lin (CosineLinear)"),
    "a hook that changes the output": (HookedOutput, "last before the loss: lin (Linear)"),
    "attention last": (Attention, "last before the loss: attention (MultiheadAttention)"),
}


def of(net: Net) -> str:
    draw = torch.Generator().manual_seed(0)
    batches = DataLoader(TensorDataset(torch.randn(6, D, generator=draw), torch.arange(6) % C), batch_size=4)
    module = Adapted(net)
    return logits_layer(module, first_sample(batches, module))


@pytest.mark.parametrize(("kind", "named"), REFUSED.values(), ids=REFUSED)
def test_what_follows_the_layer_is_named(kind, named):
    net = kind()
    before = {n: x.clone() for n, x in net.state_dict().items()}
    with pytest.raises(InputError) as caught:
        of(net)
    assert named in str(caught.value).splitlines()[0]
    assert all(torch.equal(x, before[n]) for n, x in net.state_dict().items())


class WeightNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lin = parametrizations.weight_norm(self.lin)


class SpectralNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lin = parametrizations.spectral_norm(self.lin)


class SpectralNormOfHooks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.utils.spectral_norm(self.lin)


class Siamese(Net):
    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) - super().logits(-x)


class Softmax(Net):
    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.nll_loss(self.logits(batch[0]).softmax(1).log(), batch[1])


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.full((C,), 2.0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.values * x


class FrozenScale(Net):
    """A fixed scale of the logits, as a layer and as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale()
        self.register_buffer("prior", torch.randn(C))

    def logits(self, x: Tensor) -> Tensor:
        return self.prior * self.scale(super().logits(x))


class Temperature(Net):
    """One number that scales all logits, as the features do."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def logits(self, x: Tensor) -> Tensor:
        return self.log_scale.exp() * super().logits(x)


class Penalised(Net):
    """Weights that enter a penalty act on no logit."""

    def training_step(self, batch: Any, _: int) -> Tensor:
        return super().training_step(batch, _) + 0.01 * sum(p.norm() for p in self.parameters())


class Residual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(H, H)

    def training_step(self, batch: Any, _: int) -> Tensor:
        h = self.features(batch[0])
        penalty = 0.01 * sum(p.square().sum() for p in self.parameters())
        return F.cross_entropy(h + self.lin(h), batch[1]) + penalty


class Upsampled(Net):
    """Pixels whose logits are interpolated to a larger picture."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.lin = nn.Conv2d(1, H, 3, padding=1), nn.Conv2d(H, C, 1)

    def training_step(self, batch: Any, _: int) -> Tensor:
        z = self.lin(torch.tanh(self.body(batch[0].view(-1, 1, 2, 2))))
        z = F.interpolate(z, scale_factor=2, mode="bilinear")
        return F.cross_entropy(z, batch[1].view(-1, 1, 1).expand(-1, 4, 4))


FOUND = {
    "weight norm": WeightNorm,
    "spectral norm": SpectralNorm,
    "spectral norm by hooks": SpectralNormOfHooks,
    "used twice": Siamese,
    "softmax in the module": Softmax,
    "a fixed scale": FrozenScale,
    "a temperature": Temperature,
    "a penalty of norms": Penalised,
    "a residual, and a penalty": Residual,
    "upsampled": Upsampled,
}


@pytest.mark.parametrize("kind", FOUND.values(), ids=FOUND)
def test_other_forms_of_heads_are_found(kind):
    net = kind()
    before = {n: x.clone() for n, x in net.state_dict().items()}
    assert of(net) == "model.lin"
    assert all(torch.equal(x, before[n]) for n, x in net.state_dict().items())
