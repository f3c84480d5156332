"""Losses are differentiated in the fastest way that agrees with the backward pass of single samples."""

import warnings

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.curvature import Hessian, dense
from ifloo.errors import InputError
from ifloo.gradients import gradient_products
from ifloo.models import Adapted
from ifloo.objective import Objective, preflight, scoring
from ifloo.objective.functional import Path
from ifloo.objective.layout import Layout
from ifloo.objective.singles import Part, Singles
from ifloo.objective.torch_texts import SLOW_RULE
from tests.objective.situations import SITUATIONS, GraphSet, Linear, N, Rows, joined, padded, rows, shared

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # of torch._inductor


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


@pytest.mark.parametrize("recorded", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_fastest_way_that_agrees_is_taken(case, recorded):
    module, loader = Adapted(case.module()), case.loader()
    with recorded():
        objective = Objective.of(module, loader)
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


def test_singles_move_with_their_parts():
    singles = Singles((torch.zeros(2),) * 2, None, (Part((0, 1), torch.ones(2)),)).to(torch.device("meta"))
    ((rows, batch),) = singles.summed
    assert rows == (0, 1)
    assert batch.device.type == "meta"


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


def test_trials_of_vmap_print_no_warning_of_torch():
    class Packed(L.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.lin = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def training_step(self, batch, _):
            x, lengths, y = batch
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            return F.cross_entropy(self.lin(self.rnn(packed)[1][-1]), y)

    draw = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(12, 5, 3, generator=draw), torch.arange(12) % 4 + 2, torch.arange(12) % 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert Objective.of(Adapted(Packed()), DataLoader(data, batch_size=4)).losses.path is Path.LOOP
    assert [one for one in caught if SLOW_RULE in str(one.message)] == []
