"""What was trained is held against what is scored: four outcomes, each found from gradients and named."""

import copy
import signal

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.models.run_state import RunState
from ifloo.objective.certificate import Outcome
from ifloo.stages.certificate.drawn_batches import drawn_batches
from ifloo.stages.certificate.examined_run import sample_weights
from ifloo.stages.certificate.run_certificate import examined
from tests.stages.certificate.modules import (
    CLASS_WEIGHTS,
    L2,
    AlwaysNoisy,
    ByHand,
    ClassWeights,
    ClosureInTheStep,
    Data,
    Decayed,
    Dropped,
    HeadOnly,
    Moment,
    Net,
    NextToken,
    NoisyData,
    NoisyOnDevice,
    Normed,
    NormedDroppedWeighted,
    Smoothed,
    TextData,
    Transferred,
    WeightedByInput,
    WeightedByRow,
    WeightedRows,
    losses,
    rows,
)
from tests.stages.certificate.requested import certificate, of


@pytest.mark.parametrize(
    ("net", "settings"),
    [
        (Net, {}),
        (Moment, {}),
        (ClosureInTheStep, {}),
        (Transferred, {}),
        (Net, {"sample_losses": losses, "l2": L2}),
        (ByHand, {"sample_losses": losses, "l2": L2}),
        (Decayed, {"l2": 0.0005}),
        (HeadOnly, {"parameters": ("lin.*",)}),
    ],
)
def test_equal_to_rounding(net, settings):
    found = certificate(net, **settings)
    assert found.outcome is Outcome.EQUAL
    assert found.relative_difference < 1e-14
    assert found.tolerance < 1e-12
    assert found.causes == ()
    assert found.note == ""


def test_augmentation_by_the_data_set_cancels():
    """The batch and the batches of one are made of the same reads."""
    assert certificate(Net, NoisyData()).outcome is Outcome.EQUAL


def test_accumulation_and_clipping_leave_the_gradient_of_one_batch():
    state = RunState(epoch=7, global_step=20, max_epochs=8, accumulate_grad_batches=4, gradient_clip_val=1e-3)
    assert certificate(Net, state=state).outcome is Outcome.EQUAL


def test_a_float32_network_is_equal_to_the_rounding_of_float32():
    class Single(Data):
        dataset = TensorDataset(rows()[0].float(), rows()[1])

    torch.manual_seed(0)
    found = certificate(Net().float(), Single())
    assert found.outcome is Outcome.EQUAL
    assert 1e-9 < found.relative_difference < found.tolerance < 1e-4


def test_a_loss_that_converts_to_fewer_bits_is_equal_to_their_rounding():
    """As the losses of language models do, whatever the precision of the weights."""

    class Converted(Net):
        def training_step(self, batch, _):
            return F.cross_entropy(self.lin(batch[0]).float(), batch[1])

    found = certificate(Converted)
    assert found.outcome is Outcome.EQUAL
    assert 1e-10 < found.relative_difference < found.tolerance < 1e-4


def test_what_float32_hides_is_compared_in_float64():
    """Residuals of 1e-3 beside predictions of 1,000: a tenth of the gradient is rounding."""

    class Regression(Net):
        def training_step(self, batch, _):
            return (self.lin(batch[0]).sum(1) - batch[1]).square().mean()

    torch.manual_seed(0)
    net, (x, _) = Regression(), rows()
    net.lin.weight.data *= 1000
    y = (net.lin(x).sum(1) + 1e-3 * torch.randn(len(x), dtype=torch.float64)).detach()

    class Single(Data):
        dataset = TensorDataset(x.float(), y.float())

    net = net.float()
    found = certificate(net, Single())
    assert found.outcome is Outcome.EQUAL
    assert found.relative_difference < 1e-12
    assert "compared in float64" in found.text
    assert net.lin.weight.dtype is torch.float32


@pytest.mark.parametrize(
    ("net", "data", "rule", "values"),
    [
        (ClassWeights, Data, "the value of item 1", {"0": 1.0, "1": 5.0, "2": 2.0}),
        (NextToken, TextData, "the number of entries of 'ids' less 1", {}),
        (WeightedByRow, WeightedRows, "the value of item 2", {}),
        (WeightedByInput, Data, "a number of its own for each sample", {}),
    ],
)
def test_weights_of_a_batch_are_found(net, data, rule, values):
    found = certificate(net, data())
    assert found.outcome is Outcome.WEIGHTED
    assert found.relative_difference < 1e-13
    assert found.weights.rule == rule
    assert found.weights.values == pytest.approx(values, rel=1e-10)
    assert rule in found.text


def test_weights_are_found_under_a_penalty_that_is_stated_apart():
    found = certificate(ClassWeights, sample_losses=losses, l2=L2)
    assert found.outcome is Outcome.WEIGHTED
    assert found.weights.values == pytest.approx({"0": 1.0, "1": 5.0, "2": 2.0}, rel=1e-10)


def test_weights_of_all_samples_make_the_mean_the_trained_loss():
    """J = Σ a_i ℓ_i / Σ a_i has the gradient of the training step on all samples at once, by plain autograd."""
    for net, data in ((ClassWeights, Data()), (NextToken, TextData()), (WeightedByInput, Data())):
        request = of(net, data)
        weights = examined(request).weights
        shares = sample_weights(weights, request.loader)
        module, dataset = request.module.model, data.dataset
        collate = request.loader.collate_fn
        alone = [module.training_step(collate([dataset[i]]), 0) for i in range(len(dataset))]
        whole = module.training_step(collate([dataset[i] for i in range(len(dataset))]), 0)
        j = (shares * torch.stack(alone)).sum() / shares.sum()
        torch.testing.assert_close(j, whole, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("net", "cause"),
    [
        (Normed, ["BatchNorm statistics"]),
        (Dropped, ["dropout"]),
        (Smoothed, ["a branch on self.training or trainer.training"]),
        (NoisyOnDevice, ["a branch on self.training or trainer.training"]),
        (NormedDroppedWeighted, ["BatchNorm statistics", "dropout"]),
    ],
)
def test_evaluation_mode_is_the_whole_difference(net, cause):
    found = certificate(net)
    assert found.outcome is Outcome.EVALUATION
    assert [one.name for one in found.causes] == cause
    assert 0.01 < found.relative_difference < 1
    assert 0.5 < found.cosine < 1
    percent = f"{100 * found.relative_difference:.2g} %"
    assert f"scores are of the evaluation-mode objective; the gradient of a training step differs by {percent}" in (
        found.text
    )


def test_the_difference_is_that_of_dense_gradients():
    """Smoothed labels in training mode: both gradients by hand, on the batches that were compared."""
    request = of(Smoothed)
    found = examined(request).certificate
    module, squares, norms, dots = request.module.model, 0.0, 0.0, [0.0, 0.0, 0.0]
    for samples in drawn_batches(request.loader).samples:
        x, y = request.loader.collate_fn(list(samples))

        def gradient(smoothing, x=x, y=y):
            loss = F.cross_entropy(module.lin(x), y, label_smoothing=smoothing) + module.l2()
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.lin.parameters()))])

        trained, scored = gradient(0.2), gradient(0.0)
        squares, norms = squares + float((trained - scored).square().sum()), norms + float(scored.square().sum())
        for k, (a, b) in enumerate(((trained, scored), (trained, trained), (scored, scored))):
            dots[k] += float(a @ b)
    assert found.relative_difference == pytest.approx((squares / norms) ** 0.5, rel=1e-10)
    assert found.cosine == pytest.approx(dots[0] / (dots[1] * dots[2]) ** 0.5, rel=1e-10)


def test_sixteen_bits_are_named_and_taken_away():
    class Single(Data):
        dataset = TensorDataset(rows()[0].float(), rows()[1])

    torch.manual_seed(0)
    for precision in ("bf16-mixed", "bf16-true"):
        state = RunState(epoch=7, global_step=20, max_epochs=8, precision=precision)
        found = certificate(Net().float(), Single(), state=state)
        assert found.outcome is Outcome.EVALUATION
        assert [one.name for one in found.causes] == [f"precision {precision}"]
        assert 1e-4 < found.relative_difference < 0.05
        assert found.cosine > 0.999


def test_decay_of_the_optimizer_is_a_note_of_its_own():
    found = certificate(Decayed)
    assert found.outcome is Outcome.EQUAL
    assert found.note == "the optimizer adds weight decay 0.0005, which J lacks: give --adapt.l2 0.0005"


def test_hooks_that_draw_at_random_are_the_evaluation_objective():
    found = certificate(AlwaysNoisy)
    assert found.outcome is Outcome.EVALUATION
    assert [one.name for one in found.causes] == [
        "batch hooks (on_after_batch_transfer), which draw at random or mix samples"
    ]


def test_sorted_data_read_in_order_do_not_hide_class_weights():
    """Neighbours have one class, in which weights cancel."""
    x, y = rows()
    order = y.argsort(stable=True)

    class Sorted(Data):
        dataset = TensorDataset(x[order], y[order])
        shuffle = False

    found = certificate(ClassWeights, Sorted())
    assert found.outcome is Outcome.WEIGHTED
    ratio = found.weights.values
    assert ratio == pytest.approx({str(k): float(w) for k, w in enumerate(CLASS_WEIGHTS)}, rel=1e-10)


def test_the_users_objects_and_random_states_stay_as_they_are():
    request = of(NormedDroppedWeighted)
    own, data = request.module.model, request.datamodule
    own.drop.eval()
    weights, modes = copy.deepcopy(own.state_dict()), [m.training for m in own.modules()]
    torch.manual_seed(3)
    before, handlers = torch.get_rng_state(), [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    examined(request)
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in own.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in own.state_dict().items())
    assert all(p.grad is None for p in own.parameters())
    assert own._trainer is None
    assert data.trainer is None


def test_within_predict_gradients_are_turned_on():
    with torch.no_grad():
        assert certificate(Net).outcome is Outcome.EQUAL
    with torch.inference_mode():
        request = of(Net)
    with torch.no_grad():
        assert certificate(copy.deepcopy(Net()), Data()).outcome is Outcome.EQUAL
    assert request is not None


def test_a_loader_of_batches_made_by_the_dataset():
    class Batches(Data):
        def train_dataloader(self):
            x, y = rows()
            return DataLoader([(x[k : k + 5], y[k : k + 5]) for k in range(0, 60, 5)], batch_size=None)

    assert certificate(Net, Batches()).outcome is Outcome.EQUAL


def test_a_record_has_plain_values():
    found = certificate(ClassWeights)
    record = found.record()
    assert record["outcome"] == "weighted"
    assert record["rows"] == [30, 30, 30]
    assert record["weights"]["values"] == pytest.approx({"0": 1.0, "1": 5.0, "2": 2.0}, rel=1e-10)
    assert record["text"] == found.text
