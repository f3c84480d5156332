"""Losses are differentiated in the fastest way that agrees with the backward pass of single samples."""

from collections import UserDict
from dataclasses import dataclass

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ifloo.curvature import Hessian, dense
from ifloo.errors import InputError
from ifloo.gradients import gradient_products
from ifloo.models import Adapted
from ifloo.objective import Objective, preflight, scoring
from ifloo.objective.functional import Path
from ifloo.objective.layout import Layout
from ifloo.objective.singles import Singles

N = 24
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # of torch._inductor


def rows(n=N, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=draw, dtype=torch.float64)
    return x, (x[:, :3] + 0.7 * torch.randn(n, 3, generator=draw, dtype=torch.float64)).argmax(1)


class Rows(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        x, y = rows()
        return x[i], y[i]


class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(4, 3, dtype=torch.float64)

    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch[0]), batch[1])


class ReadsValues(Linear):
    def training_step(self, batch, _):
        loss = super().training_step(batch, _)
        return 2 * loss if loss.item() > 1 else loss


class WeighsWithoutGradient(Linear):
    def training_step(self, batch, _):
        losses = F.cross_entropy(self.lin(batch[0]), batch[1], reduction="none")
        with torch.no_grad():
            weights = 1 - (-F.cross_entropy(self.lin(batch[0]), batch[1], reduction="none")).exp()
        return (weights * losses).mean()


class ScalesGradients(Linear):
    def training_step(self, batch, _):
        z = self.lin(batch[0])
        if z.requires_grad:
            z.register_hook(lambda g: g * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        return F.cross_entropy(z, batch[1])


class Compiled(Linear):
    def __init__(self):
        super().__init__()
        self.lin = torch.compile(self.lin, backend="eager")


def shared(samples):
    prior = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    return {"x": torch.stack([x for x, _ in samples]), "y": torch.stack([y for _, y in samples]), "prior": prior}


class AddsPrior(Linear):
    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch["x"]) + batch["prior"], batch["y"])


class Fields(UserDict):
    def __getattr__(self, name):
        if name in self.__dict__["data"]:
            return self.__dict__["data"][name]
        raise AttributeError(name)


class ReadsFields(Linear):
    def training_step(self, batch, _):
        return F.cross_entropy(self.lin(batch.x), batch.y)


class Tokens(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(i)
        tokens = torch.randint(6, (9,), generator=draw)
        return tokens[:-1], (tokens[1:] + tokens[:-1]) % 6


class TimeFirst(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(6, 6, dtype=torch.float64)

    def training_step(self, batch, _):
        return F.cross_entropy(self.emb(batch[0]).flatten(0, 1), batch[1].flatten())


class Sentences(Dataset):
    def __init__(self, lengths=(2, 7)):
        self.lengths = lengths

    def __len__(self):
        return N

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(i)
        n = int(torch.randint(*self.lengths, (1,), generator=draw))
        tokens = torch.randint(1, 6, (n,), generator=draw)
        return tokens, (tokens + 1) % 3


def padded(samples):
    pad = nn.utils.rnn.pad_sequence
    return {
        "tokens": pad([a for a, _ in samples], batch_first=True),
        "tags": pad([b for _, b in samples], batch_first=True, padding_value=-100),
    }


class Tagger(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(6, 2, dtype=torch.float64)
        self.rnn = nn.LSTM(2, 2, batch_first=True, dtype=torch.float64)
        self.out = nn.Linear(2, 3, dtype=torch.float64)

    def training_step(self, batch, _):
        hidden = self.rnn(self.emb(batch["tokens"]))[0]
        return F.cross_entropy(self.out(hidden).flatten(0, 1), batch["tags"].flatten(), ignore_index=-100)


@dataclass
class Graphs:
    x: Tensor
    edges: Tensor
    graph: Tensor
    y: Tensor


class GraphSet(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        draw = torch.Generator().manual_seed(i)
        k = int(torch.randint(2, 6, (1,), generator=draw))
        return (
            torch.randn(k, 4, generator=draw, dtype=torch.float64),
            torch.randint(k, (2, 2 * k), generator=draw),
            i % 3,
        )


def joined(samples):
    sizes = torch.tensor([len(x) for x, _, _ in samples])
    starts = sizes.cumsum(0) - sizes
    return Graphs(
        torch.cat([x for x, _, _ in samples]),
        torch.cat([e + s for (_, e, _), s in zip(samples, starts, strict=True)], 1),
        torch.arange(len(samples)).repeat_interleave(sizes),
        torch.tensor([y for _, _, y in samples]),
    )


class GraphNet(Linear):
    def training_step(self, batch, _):
        h = torch.tanh(batch.x)
        h = h + torch.zeros_like(h).index_add(0, batch.edges[1], h[batch.edges[0]])
        pooled = torch.zeros(len(batch.y), 4, dtype=h.dtype).index_add(0, batch.graph, h)
        return F.cross_entropy(self.lin(pooled), batch.y)


@dataclass
class Situation:
    module: type
    data: Dataset
    collate: object = None
    path: Path = Path.LOOP
    whole: bool = True

    def loader(self):
        return DataLoader(self.data, batch_size=7, **({"collate_fn": self.collate} if self.collate else {}))


SITUATIONS = {
    "plain": Situation(Linear, Rows(), path=Path.FORWARD),
    "values": Situation(ReadsValues, Rows(), whole=False),
    "no_grad": Situation(WeighsWithoutGradient, Rows(), path=Path.BACKWARD),
    "hook": Situation(ScalesGradients, Rows()),
    "compiled": Situation(Compiled, Rows(), path=Path.FORWARD),
    "shared tensor": Situation(AddsPrior, Rows(), shared),
    "mapping": Situation(
        ReadsFields,
        Rows(),
        lambda samples: Fields(x=torch.stack([x for x, _ in samples]), y=torch.stack([y for _, y in samples])),
        Path.FORWARD,
    ),
    "time first": Situation(
        TimeFirst, Tokens(), lambda samples: tuple(torch.stack(part, 1) for part in zip(*samples, strict=True))
    ),
    "recurrent": Situation(Tagger, Sentences((4, 5)), padded),
    "padded": Situation(Tagger, Sentences(), padded, whole=False),
    "graphs": Situation(GraphNet, GraphSet(), joined),
}


@pytest.fixture(params=SITUATIONS, name="case")
def _case(request):
    return SITUATIONS[request.param]


def _alone(case):
    """Returns the batch of one of each sample, as the dataset and collate function make it."""
    loader = case.loader()
    return [loader.collate_fn([case.data[i]]) for i in range(N)]


def _flat(module, value, create_graph=False):
    parameters = list(module.parameters())
    parts = torch.autograd.grad(value, parameters, create_graph=create_graph)
    return torch.cat([part.reshape(-1) for part in parts])


def _gradients(module, singles):
    with torch.compiler.set_stance("force_eager"):
        return torch.stack([_flat(module, module.training_step(one, 0)) for one in singles])


def test_the_fastest_way_that_agrees_is_taken(case):
    objective = Objective.of(Adapted(case.module()), case.loader())
    assert objective.losses.path is case.path
    if case.path is Path.LOOP:
        _, batch = next(objective.data.with_ids())
        assert (batch.whole is not None) == case.whole


def test_products_are_those_of_the_backward_pass(case):
    module = case.module()
    objective = Objective.of(Adapted(module), case.loader())
    exact = _gradients(module, _alone(case))
    theta = objective.losses.theta()
    V = torch.randn(3, len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with scoring(objective.losses.module):
        found = torch.cat([gradient_products(objective.losses, theta, b, V) for _, b in objective.data.with_ids()], 1)
        mean = objective.gradient(theta)
    assert torch.allclose(found, V @ exact.T, rtol=1e-12, atol=1e-14)
    assert torch.allclose(mean, exact.mean(0), rtol=1e-12, atol=1e-15)


def test_the_curvature_is_that_of_double_backward(case):
    module = case.module()
    objective = Objective.of(Adapted(module), case.loader())
    exact = 0.0
    with torch.compiler.set_stance("force_eager"):
        for one in _alone(case):
            slope = _flat(module, module.training_step(one, 0), create_graph=True)
            exact = exact + torch.stack([_flat(module, s, create_graph=True).detach() for s in slope]) / N
    with scoring(objective.losses.module):
        found = dense(Hessian(objective, objective.losses.theta()))
    assert torch.allclose(found, exact.T, rtol=1e-11, atol=1e-14)


def test_a_mean_over_tokens_has_the_weights_of_their_number():
    case = SITUATIONS["padded"]
    module = case.module()
    objective = Objective.of(Adapted(module), case.loader())
    weighted = objective.weighted(torch.tensor([float(len(case.data[i][0])) for i in range(N)]))
    whole = module.training_step(padded([case.data[i] for i in range(N)]), 0)
    theta = weighted.losses.theta()
    with scoring(objective.losses.module):
        value, slope = weighted.value_and_gradient(theta)
        by_one = sum(weighted.losses.sample_losses(theta, batch).sum() for _, batch in weighted.data.with_ids()) / N
    assert float(value) == pytest.approx(float(whole.detach()), rel=1e-14)
    assert float(by_one) == pytest.approx(float(whole.detach()), rel=1e-14)
    assert torch.allclose(slope, _flat(module, whole), rtol=1e-12, atol=1e-15)


def test_a_loss_that_later_rows_alone_show_is_found():
    """The samples that are compared are drawn from all data, not its first ones."""

    class Sorted(Linear):
        def training_step(self, batch, _):
            weight = torch.where(batch[0][:, 0] > 0.5, 2.0, 1.0)
            return (weight * F.cross_entropy(self.lin(batch[0]), batch[1], reduction="none")).sum() / weight.sum()

    x, y = rows(400)
    order = x[:, 0].argsort()
    objective = Objective.of(Adapted(Sorted()), DataLoader(TensorDataset(x[order], y[order])))
    with pytest.raises(InputError, match="is not a mean of losses of single samples"):
        preflight(objective, objective.losses.theta())


def test_a_sample_without_a_finite_loss_is_named():
    class Root(Linear):
        def training_step(self, batch, _):
            return (self.lin(batch[0]).square() * batch[0][:, :1].sqrt()).mean()

    x = rows()[0].abs()
    x[7, 0] = -1.0
    with pytest.raises(InputError, match=r"^The loss of training sample 7 is nan: no score can be computed\.\n"):
        Objective.of(Adapted(Root()), DataLoader(TensorDataset(x, rows()[1])))


def test_a_random_loss_is_refused():
    class Noisy(Linear):
        def training_step(self, batch, _):
            return F.cross_entropy(self.lin(batch[0] + torch.randn_like(batch[0])), batch[1])

    with pytest.raises(InputError, match=r"^The loss of a sample differs at two calls on the same batch: "):
        Objective.of(Adapted(Noisy()), DataLoader(Rows()))


@pytest.mark.parametrize("name", ["plain", "shared tensor", "mapping", "time first", "recurrent"])
def test_a_batch_is_taken_apart_along_the_dimension_of_its_samples(name):
    case = SITUATIONS[name]
    collate = case.loader().collate_fn
    samples = [case.data[i] for i in (3, 5, 8)]
    layout = Layout.of(collate, samples[0])
    parts = layout.split(collate(samples))
    assert len(parts) == 3
    for part, sample in zip(parts, samples, strict=True):
        torch.testing.assert_close(part, collate([sample]))
        assert type(part) is type(collate([sample]))


def test_nodes_of_graphs_are_no_samples():
    assert Layout.of(joined, GraphSet()[0]) is None


def test_singles_move_as_a_whole():
    singles = Singles((torch.zeros(2), [torch.zeros(1)]), torch.zeros(3)).to(torch.device("meta"))
    assert [part.device.type for part in (singles.batches[0], singles.batches[1][0], singles.whole)] == ["meta"] * 3


def test_a_gradient_that_is_stopped_for_a_few_samples_is_found_over_all_of_them():
    """The samples that are drawn for the comparison hold none of those whose loss stops a gradient."""

    class StopsForMarked(Linear):
        def training_step(self, batch, _):
            losses = F.cross_entropy(self.lin(batch[0]), batch[1], reduction="none")
            with torch.no_grad():
                weights = 1 - (-F.cross_entropy(self.lin(batch[0]), batch[1], reduction="none")).exp()
            return (torch.where(batch[0][:, 0] > 9, weights, 1.0) * losses).mean()

    x, y = rows(2000)
    drawn = set(torch.randperm(2000, generator=torch.Generator().manual_seed(0))[:256].tolist())
    marked = [i for i in range(2000) if i not in drawn][:20]
    x[marked, 0] += 20
    module = StopsForMarked()
    objective = Objective.of(Adapted(module), DataLoader(TensorDataset(x, y), batch_size=500), batch_size=500)
    assert objective.losses.path is Path.FORWARD
    preflight(objective, objective.losses.theta())
    assert objective.losses.path is Path.BACKWARD
    assert "over all samples" in objective.losses.notes[-1]
    V = torch.randn(2, 15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with scoring(objective.losses.module):
        parts = [
            gradient_products(objective.losses, objective.losses.theta(), b, V) for _, b in objective.data.with_ids()
        ]
    some = [*marked[:3], 5, 6]
    exact = _gradients(module, [(x[i : i + 1], y[i : i + 1]) for i in some])
    assert torch.allclose(torch.cat(parts, 1)[:, some], V @ exact.T, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("size", [1, 3])
def test_stated_losses_of_a_batch_whose_first_tensor_is_shared(size):
    def collate(samples):
        batch = shared(samples)
        return {"temperature": torch.full((size,), 2.0, dtype=torch.float64), "x": batch["x"], "y": batch["y"]}

    def losses(model, batch):
        return F.cross_entropy(model.lin(batch["x"]) / batch["temperature"][0], batch["y"], reduction="none")

    module = Linear()
    objective = Objective.of(Adapted(module, losses), DataLoader(Rows(), batch_size=7, collate_fn=collate))
    assert (objective.n, objective.losses.path) == (N, Path.LOOP)
    singles = [collate([Rows()[i]]) for i in range(N)]
    exact = torch.stack([_flat(module, losses(module, one).sum()) for one in singles])
    with scoring(objective.losses.module):
        assert torch.allclose(objective.gradient(objective.losses.theta()), exact.mean(0), rtol=1e-12, atol=1e-15)


def test_a_stopped_part_is_seen_in_float32_with_many_weights():
    """Along a random direction alone its slope would be lost in rounding: it is √p times smaller than the gradient."""

    class Stops(L.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.emb, self.lin = nn.Embedding(30_000, 32), nn.Linear(32, 3)

        def training_step(self, batch, _):
            losses = F.cross_entropy(self.lin(self.emb(batch[0])), batch[1], reduction="none")
            with torch.no_grad():
                factor = 1 - 0.15 * (-F.cross_entropy(self.lin(self.emb(batch[0])), batch[1], reduction="none")).exp()
            return (factor * losses).mean()

    draw = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randint(30_000, (40,), generator=draw), torch.randint(3, (40,), generator=draw))
    assert Objective.of(Adapted(Stops()), DataLoader(data, batch_size=8)).losses.path is Path.BACKWARD
