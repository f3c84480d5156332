"""Batch hooks that draw at random act on scored samples as augmentation does: one draw, or the mean over several."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.data.kept_samples import ReadSettings, SampleReads
from ifloo.models import Adapted
from ifloo.objective import Objective, preflight, scoring
from ifloo.objective.certificate import Outcome
from ifloo.objective.functional import Path
from tests.objective.situations import Linear, N, rows
from tests.stages.certificate.modules import AlwaysNoisy
from tests.stages.certificate.requested import certificate

SEEN: list[Tensor] = []  # what the hook gave; lists of a module are restored after a pass


class Noisy(Linear):
    """Adds noise to each batch, whatever the mode."""

    def on_after_batch_transfer(self, batch: Any, _: int) -> Any:
        x = batch[0] + 0.5 * torch.randn_like(batch[0])
        SEEN.append(x.detach())
        return x, batch[1]


class Mixup(Linear):
    def on_after_batch_transfer(self, batch: Any, _: int) -> Any:
        order, share = torch.randperm(len(batch[0])), torch.rand(())
        return share * batch[0] + (1 - share) * batch[0][order], batch[1]


class Doubled(Linear):
    """A hook that draws nothing."""

    def on_after_batch_transfer(self, batch: Any, _: int) -> Any:
        return 2 * batch[0], batch[1]


def loader(draws: int = 1) -> DataLoader[Any]:
    plain = DataLoader(TensorDataset(*rows()), batch_size=7)
    return SampleReads(ReadSettings(draws)).of(plain, "train", draws)


def slopes(module: L.LightningModule, x: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(module.lin(x), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.lin.parameters()))])


@pytest.mark.parametrize("draws", [1, 3])
def test_each_sample_has_its_own_draws_at_each_pass(draws):
    module = Noisy()
    objective = Objective.of(Adapted(module), loader(draws))
    theta = objective.losses.theta()
    before = torch.get_rng_state()
    preflight(objective, theta)
    SEEN.clear()
    with scoring(objective.losses.module):
        first = [g for _, b in objective.data.with_ids() for g in objective.losses.gradients_one_by_one(theta, b)]
        seen = list(SEEN)
        again = [g for _, b in objective.data.with_ids() for g in objective.losses.gradients_one_by_one(theta, b)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.stack(first), torch.stack(again))
    x, y = rows()
    assert len(seen) == draws * N
    noise = torch.cat(seen) - x.repeat_interleave(draws, 0)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.15)
    assert len({float(n[0]) for n in noise}) == draws * N
    exact = [
        torch.stack([slopes(module, seen[draws * i + k], y[i : i + 1]) for k in range(draws)]).mean(0) for i in range(N)
    ]
    torch.testing.assert_close(torch.stack(first), torch.stack(exact), rtol=1e-12, atol=1e-15)


def test_samples_alone_are_mixed_with_none():
    module = Mixup()
    objective = Objective.of(Adapted(module), loader())
    theta = objective.losses.theta()
    with scoring(objective.losses.module):
        found = [g for _, b in objective.data.with_ids() for g in objective.losses.gradients_one_by_one(theta, b)]
    x, y = rows()
    exact = torch.stack([slopes(module, x[i : i + 1], y[i : i + 1]) for i in range(N)])
    torch.testing.assert_close(torch.stack(found), exact, rtol=1e-12, atol=1e-15)


def test_hooks_that_draw_nothing_cost_no_speed():
    assert Objective.of(Adapted(Doubled()), loader()).losses.path is Path.FORWARD


def test_the_certificate_names_them():
    assert certificate(AlwaysNoisy).outcome is Outcome.EVALUATION
