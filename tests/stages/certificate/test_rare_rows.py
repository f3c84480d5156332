"""Rows that a few drawn batches are likely to miss are compared, and a certificate states how many rows it compared."""

from dataclasses import replace

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from ifloo.objective.certificate import Outcome
from ifloo.stages.certificate.drawn_batches import drawn_batches
from ifloo.stages.certificate.rare_rows import with_rare_rows
from ifloo.stages.certificate.run_certificate import examined
from tests.stages.certificate.modules import D, Net
from tests.stages.certificate.requested import certificate, of

SEEDS = (0, 1, 2)


def imbalanced(counts, seed):
    """Rows of classes with these numbers of rows each, in random order."""
    g = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=g)]
    return torch.randn(len(y), 4, generator=g, dtype=D) + y[:, None], y


class Items(Dataset):
    """Samples that are read one by one, as dicts."""

    def __init__(self, x, y):
        self.x, self.y, self.reads = x, y, []

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        self.reads.append(i)
        return {"x": self.x[i], "y": int(self.y[i])}


class Loaded(L.LightningDataModule):
    def __init__(self, dataset, size):
        super().__init__()
        self.dataset, self.size = dataset, size

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=self.size, shuffle=True)


class Weighted(Net):
    """A linear classifier with class weights."""

    def __init__(self, weights):
        super().__init__()
        self.weights, self.lin = torch.tensor(weights, dtype=D), nn.Linear(4, len(weights), dtype=D)

    def training_step(self, batch, _):
        x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
        return F.cross_entropy(self.lin(x), y, weight=self.weights)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_weight_of_a_class_of_five_rows_is_found(seed):
    torch.manual_seed(seed)
    data = Loaded(TensorDataset(*imbalanced([700, 495, 5], seed)), 32)
    found = certificate(Weighted([1.0, 1.0, 30.0]), data)
    assert found.outcome is Outcome.WEIGHTED
    assert found.weights.values == pytest.approx({"0": 1.0, "1": 1.0, "2": 30.0}, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_weight_of_four_positives_is_found_where_the_batch_is_all_data(seed):
    torch.manual_seed(seed)
    data = Loaded(TensorDataset(*imbalanced([3996, 4], seed)), 4000)
    found = certificate(Weighted([1.0, 50.0]), data)
    assert found.outcome is Outcome.WEIGHTED
    assert found.weights.values == pytest.approx({"0": 1.0, "1": 50.0}, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_weight_is_found_in_float32_after_a_fit(seed):
    """Most samples are fitted well, and their gradients differ by less than rounding."""
    torch.manual_seed(seed)
    x, y = imbalanced([3996, 4], seed)
    net = Weighted([1.0, 50.0]).float()
    net.weights = net.weights.float()
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(net.lin(x.float()), y, weight=net.weights).backward()
        optimizer.step()
    found = certificate(net, Loaded(TensorDataset(x.float(), y), 4000))
    assert found.outcome is Outcome.WEIGHTED
    assert found.weights.values == pytest.approx({"0": 1.0, "1": 50.0}, rel=1e-4)


def test_rare_rows_are_found_among_samples_that_are_read_one_by_one():
    data = Loaded(Items(*imbalanced([700, 495, 5], 0)), 32)
    found = certificate(Weighted([1.0, 1.0, 30.0]), data)
    assert found.weights.values == pytest.approx({"0": 1.0, "1": 1.0, "2": 30.0}, rel=1e-9)


def test_rare_rows_are_found_in_a_part_of_a_data_set():
    x, y = imbalanced([700, 495, 5], 0)
    part = Subset(TensorDataset(x, y), [*range(600), *(y == 2).nonzero().flatten().tolist()])
    found = certificate(Weighted([1.0, 1.0, 30.0]), Loaded(part, 32))
    assert found.weights.values == pytest.approx({"0": 1.0, "1": 1.0, "2": 30.0}, rel=1e-9)


def test_large_targets_of_a_regression_are_compared():
    """Weights above a threshold that one row in a hundred passes."""

    class Threshold(Net):
        def training_step(self, batch, _):
            x, y = batch
            a = torch.where(y > 3.0, 20.0, 1.0)
            return (a * (self.lin(x)[:, 0] - y).square()).sum() / a.sum()

    x, _ = imbalanced([1000], 0)
    y = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=D)
    y[[17, 480]] = torch.tensor([4.0, 5.0], dtype=D)
    found = certificate(Threshold(), Loaded(TensorDataset(x, y), 32))
    assert found.outcome is Outcome.WEIGHTED


def test_every_class_is_in_a_batch_with_others_and_rows_are_read_once():
    dataset = Items(*imbalanced([500, 480, 10, 6, 4], 0))
    loader = DataLoader(dataset, batch_size=20, shuffle=True)
    drawn = with_rare_rows(loader, drawn_batches(loader))
    assert all(len(rows) == 20 for rows in drawn.rows)
    mixed = [{int(dataset.y[row]) for row in rows} for rows in drawn.rows]
    assert set().union(*(classes for classes in mixed if len(classes) > 1)) == {0, 1, 2, 3, 4}
    assert [sample["y"] for sample in drawn.samples[-1]] == dataset.y[list(drawn.rows[-1])].tolist()
    assert sorted(set(dataset.reads)) == list(range(1000))
    assert len(dataset.reads) <= 1000 + 2 + 3  # two reads tell the form of the samples; rare ones are read again


def test_nothing_is_added_where_the_drawn_batches_hold_every_value():
    loader = DataLoader(TensorDataset(*imbalanced([500, 500], 0)), batch_size=50, shuffle=True)
    drawn = drawn_batches(loader)
    assert with_rare_rows(loader, drawn) is drawn


def test_rows_that_cannot_be_read_are_passed_over():
    class Broken(Items):
        def __getitem__(self, i):
            if i == self.bad:
                raise OSError("truncated file")
            return super().__getitem__(i)

    dataset = Broken(*imbalanced([600, 5], 0))
    dataset.bad = -1
    loader = DataLoader(dataset, batch_size=20, shuffle=True)
    drawn = drawn_batches(loader)
    dataset.bad = next(i for i in range(1, 605) if dataset.y[i] == 0 and all(i not in rows for rows in drawn.rows))
    held = {int(dataset.y[row]) for rows in with_rare_rows(loader, drawn).rows for row in rows}
    assert held == {0, 1}


def test_the_reading_of_samples_is_bounded(monkeypatch):
    monkeypatch.setattr("ifloo.stages.certificate.rare_rows.READ", 100)
    dataset = Items(*imbalanced([600, 5], 0))
    loader = DataLoader(dataset, batch_size=20, shuffle=True)
    with_rare_rows(loader, drawn_batches(loader))
    assert 60 < len(dataset.reads) <= 161


def test_a_certificate_of_some_rows_does_not_rule_out_the_others():
    data = Loaded(TensorDataset(*imbalanced([600, 600], 0)), 30)
    found = certificate(Weighted([1.0, 1.0]), data)
    assert found.outcome is Outcome.EQUAL
    text = found.causes_of_a_distance
    assert "Ruled out: another loss than the one trained on 90 of 1,200 rows (relative difference " in text
    assert "Not ruled out: another loss on rows that were not compared, a fit that ended early" in text


def test_a_certificate_of_all_rows_rules_out_another_loss():
    data = Loaded(TensorDataset(*imbalanced([45, 45], 0)), 30)
    text = certificate(Weighted([1.0, 1.0]), data).causes_of_a_distance
    assert "Ruled out: another loss than the one trained (relative difference " in text
    assert "not compared" not in text


@pytest.mark.parametrize(("ran", "ending"), [(True, ""), (False, ", what a callback of the fit set on the module")])
def test_a_command_does_not_rule_callbacks_of_the_fit_out(ran, ending):
    """Callbacks have set what they set on a module that ran through the fit, and not on one that is made again."""
    text = examined(replace(of(Net), ran=ran)).certificate.causes_of_a_distance
    assert text.endswith(f"ends at 1e-10){ending}. The scores are a ranking at best.")


class DecayedOutside(Net):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)


def test_decay_outside_of_j_is_a_note():
    found = certificate(DecayedOutside)
    assert found.outcome is Outcome.EQUAL
    assert found.note == "the optimizer decays weights by 0.1 outside of J"
    assert "the optimizer decays weights by 0.1 outside of J" in found.causes_of_a_distance
    assert found.text.endswith("; the optimizer decays weights by 0.1 outside of J")


def test_decay_of_other_weights_than_the_attributed_ones_is_no_note():
    class Parts(DecayedOutside):
        def configure_optimizers(self):
            groups = [{"params": [self.lin.weight], "weight_decay": 0.0}, {"params": [self.lin.bias]}]
            return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1)

    assert certificate(Parts, parameters=("lin.weight",)).note == ""
    assert certificate(Parts).note == "the optimizer decays weights by 0.1 outside of J"


def test_several_terms_with_denominators_of_their_own_are_a_likely_cause():
    class Terms(Net):
        def training_step(self, batch, _):
            z, positive = self.lin(batch[0]), batch[1] == 0
            first = (F.cross_entropy(z, batch[1], reduction="none") * positive).sum() / positive.sum().clamp(min=1)
            return first + (z.square().sum(1) * ~positive).sum() / (~positive).sum().clamp(min=1) + z.abs().mean()

    found = certificate(Terms)
    assert found.outcome is Outcome.UNEXPLAINED
    assert (
        "the most likely cause: a loss taken across the batch (contrastive, by ranks or pairs), or several terms "
        in (found.refusal)
    )
    assert "(most likely a loss taken across the batch" in found.text
