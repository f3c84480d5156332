"""The exact head against plain autograd, and what it says where there is none."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.curvature import Damped, Hessian, LinearHead, dense
from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.objective import Objective, scoring
from ifloo.params import ParamSpace
from ifloo.solvers import LiSSA
from tests.curvature.heads import HEADS, HeadCase, Net, cross_entropy

# Float64 sums of 23 samples, re-associated; the promise against the general path is 1e-10.
ROUNDING = {"rtol": 1e-12, "atol": 1e-13}
case_of = {case.name: case for case in HEADS}


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_products_and_core_are_the_hessian(case, size):
    truth = case.hessian()
    V = torch.randn(3, len(truth), generator=torch.Generator().manual_seed(0), dtype=truth.dtype)
    head = LinearHead(case.objective(size), case.theta)
    torch.testing.assert_close(head.matmat(V), V @ truth, **ROUNDING)
    torch.testing.assert_close(head.core().product(V), V @ truth, **ROUNDING)
    torch.testing.assert_close(head.matmat(V), V @ truth, **ROUNDING)  # by the core from now on
    torch.testing.assert_close(dense(Damped(head, 0.3)), truth + 0.3 * torch.eye(len(truth)).to(truth), **ROUNDING)


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_it_is_what_the_general_path_gives(case):
    objective = case.objective()
    V = torch.randn(2, len(case.theta), generator=torch.Generator().manual_seed(1), dtype=case.theta.dtype)
    ours, general = LinearHead(objective, case.theta), Hessian(objective, case.theta)
    torch.testing.assert_close(ours.matmat(V), general.matmat(V), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_the_coordinates_of_the_core_keep_lengths(case):
    head = LinearHead(case.objective(), case.theta)
    U = torch.randn(3, head.core_size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(head.reduce(head.expand(U)), U, **ROUNDING)
    torch.testing.assert_close(head.expand(U).norm(dim=1), U.norm(dim=1), **ROUNDING)


def test_softmax_needs_no_direction_of_all_classes_and_dead_inputs_no_column():
    sizes = {name: LinearHead(case_of[name].objective(), case_of[name].theta).core_size for name in case_of}
    assert sizes["softmax"] == 2 * 5
    assert sizes["softmax, bias"] == 2 * 6
    assert sizes["softmax, dead inputs"] == 2 * 4
    assert sizes["least squares"] == 2 * 6
    assert sizes["Poisson of three"] == 3 * 6


def test_a_subsample_is_the_curvature_of_its_samples():
    case = case_of["softmax, bias"]
    head = LinearHead(case.objective(), case.theta)
    drawn = head.sampler.subsampled(9, torch.Generator().manual_seed(3))
    V = torch.randn(2, head.size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    general = Hessian(drawn.objective, case.theta)
    torch.testing.assert_close(drawn.matmat(V), general.matmat(V), **ROUNDING)
    assert drawn.objective.n == 9


def test_a_damaged_core_is_found(monkeypatch):
    case = case_of["softmax"]
    head = LinearHead(case.objective(), case.theta)
    head.penalties = head.penalties.clone()
    streamed = head.streamed
    monkeypatch.setattr(head, "streamed", lambda V: streamed(V) * 1.001)
    with pytest.raises(Exception, match=r"differs from its products over the samples by 1\.0e-03 of them"):
        head.core()


class Twice(Net):
    def sample_losses(self, batch):
        return super().sample_losses(batch) + super().sample_losses(batch)


class Own(Net):
    """Its own weights enter the loss by another way too."""

    def sample_losses(self, batch):
        return super().sample_losses(batch) + batch["x"][:, 0] * self.head.weight.sum()


class Tied(Net):
    def __init__(self, *given):
        super().__init__(*given)
        self.again = nn.Linear(5, 3, bias=False, dtype=torch.float64)
        self.again.weight = self.head.weight


class Classwise(Net):
    def penalty(self):
        return 0.5 * (torch.arange(1.0, 4.0)[:, None] * self.head.weight.square()).sum()


def _coupled(z, y):
    return F.cross_entropy(z.prod(1), y[:, 0].clamp_min(0), reduction="none")


def _with(kind, loss=cross_entropy, like="softmax"):
    case = case_of[like]
    torch.manual_seed(0)
    module = kind(nn.Identity(), nn.Linear(5, 3, bias=False, dtype=torch.float64), loss)
    return HeadCase("bad", module, case.x, case.y, ("head.*",))


GENERAL = "\n  Use curvature Hessian or GaussNewton, which take any model"
REFUSED = {
    "passed twice": (
        lambda: _with(Twice),
        r"Layer 'head' must be passed once with one row \(or several positions\) for each of the 7 samples; it was "
        r"given inputs of shapes \[\[7, 5\], \[7, 5\]\].\n"
        r"  Use curvature Hessian \(or GaussNewton\), which take any model\.",
    ),
    "another way": (
        lambda: _with(Own),
        r"The losses depend on the parameters of layer 'head' other than through its output \(they differ by \S+ nats "
        rf"at other weights\): its input, or a term of the loss, depends on them too\.{GENERAL}, or attribute other "
        r"parameters\.",
    ),
    "tied": (
        lambda: _with(Tied),
        r"The weight of layer 'head' is also that of \['again'\]: the layer's input depends on it, so that the loss is "
        r"not that of a linear head\.\n  Use curvature Hessian or GaussNewton, or attribute other parameters\.",
    ),
    "coupled": (
        lambda: _with(Net, _coupled, "tokens"),
        r"The loss couples the positions of a sample, or samples of a batch: the second derivative in the outputs of "
        r"layer 'head' is not one 3 x 3 block for each position\.\n"
        r"  Use curvature Hessian or GaussNewton, which take any loss\.",
    ),
    "penalty": (
        lambda: _with(Classwise),
        r"The penalty on layer 'head' is not diagonal with one strength for each input, the same for all classes, as "
        r"½λ‖θ‖² is\.\n  Use curvature Hessian or GaussNewton, which take any penalty\.",
    ),
}


@pytest.mark.parametrize(("make", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_linear_head_is_explained(make, text):
    case = make()
    with pytest.raises(InputError, match=f"^{text}$"):
        LinearHead(case.objective(), case.theta)


def test_parameters_that_are_not_one_layer_are_explained():
    case = case_of["last layer"]
    every = HeadCase("all", case.module, case.x, case.y, ("*",))
    assert len(ParamSpace.of(case.module).names) == 4
    with pytest.raises(InputError) as caught:
        LinearHead(every.objective(), every.theta)
    assert str(caught.value) == (
        "A linear head is the weight (and bias) of one nn.Linear; attributed are ['before.0.weight', 'before.0.bias', "
        "'head.weight', 'head.bias'].\n  Linear layers here: ['before.0', 'head']. Attribute one of them "
        "(attribution.parameters: ['head.*']), or use curvature Hessian or GaussNewton for all."
    )
    assert LinearHead.bytes_kept(every.objective()) == 0


def test_lissa_is_told_to_use_something_better():
    case = case_of["softmax"]
    with pytest.raises(InputError) as caught:
        LiSSA().prepare(Damped(LinearHead(case.objective(), case.theta), 0.1))
    assert str(caught.value) == (
        "LiSSA draws single batches of samples, which LinearHead does not support: its whole curvature is known.\n"
        "  Use solver Auto, Cholesky or CG; or curvature Hessian with LiSSA."
    )


def test_a_loss_of_straight_pieces_has_no_curvature():
    """Absolute errors, quantiles and hinges: every product is exactly 0, and damping alone gives a solution."""

    class Straight(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(5, 2, dtype=torch.float64)

        def training_step(self, batch, batch_idx):
            return F.l1_loss(self.lin(batch[0]), batch[1])

    draw = torch.Generator().manual_seed(0)
    data = TensorDataset(*(torch.randn(9, k, generator=draw, dtype=torch.float64) for k in (5, 2)))
    objective = Objective.of(Adapted(Straight()), DataLoader(data, batch_size=4))
    theta = objective.losses.theta()
    V = torch.randn(3, len(theta), generator=draw, dtype=torch.float64)
    with scoring(objective.losses.module):
        head = LinearHead(objective, theta)
        assert not head.core().product(V).any()
        assert torch.equal(Damped(head, 0.5).matmat(V), 0.5 * V)
        assert not Hessian(objective, theta).matmat(V).any()
