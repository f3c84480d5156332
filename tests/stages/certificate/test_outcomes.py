"""What was trained is held against what is scored: four outcomes, each found from gradients and named."""

import copy
import signal

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ifloo.errors import InputError
from ifloo.models import Adapted
from ifloo.models.run_state import RunState
from ifloo.objective.certificate import Outcome
from ifloo.stages.certificate.run_certificate import (
    CertificateRequest,
    examined,
    objective_certificate,
    sample_weights,
)
from tests.stages.certificate.modules import (
    CLASS_WEIGHTS,
    L2,
    AlwaysNoisy,
    ByHand,
    ClassWeights,
    Contrastive,
    Data,
    Decayed,
    Dropped,
    HeadOnly,
    HookedAtTheStart,
    HookedWhenBuilt,
    Masked,
    MaskedBeforeStep,
    Moment,
    Net,
    NextToken,
    NoisyData,
    NoisyOnDevice,
    Normed,
    NormedDroppedWeighted,
    Smoothed,
    Summed,
    TextData,
    Transferred,
    WeightedByInput,
    WeightedByRow,
    WeightedRows,
    losses,
    rows,
)

END = RunState(epoch=7, global_step=20, max_epochs=8)


def of(net, data=None, state=END, parameters=("*",), accept=False, **adapt):
    torch.manual_seed(0)
    module, data = net() if isinstance(net, type) else net, data or Data()
    loader, adapted = data.train_dataloader(), Adapted(module, **adapt)
    adapted.describe_fit(state, data, loader)
    return CertificateRequest(adapted, loader, state, data, parameters, accept=accept)


def certificate(net, data=None, **settings):
    return examined(of(net, data, **settings)).certificate


@pytest.mark.parametrize(
    ("net", "settings"),
    [
        (Net, {}),
        (Moment, {}),
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
    from ifloo.stages.certificate.drawn_batches import drawn_batches

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


@pytest.mark.parametrize(
    ("net", "cause", "remedy"),
    [
        (Masked, "gradient masks (on_after_backward)", "freeze the weights"),
        (MaskedBeforeStep, "gradient masks (on_before_optimizer_step)", "--attribution.parameters"),
        (HookedWhenBuilt, "gradient masks (hooks on weights)", "freeze the weights"),
        (HookedAtTheStart, "gradient masks (hooks on weights)", "freeze the weights"),
        (Summed, "a sum over the batch in place of the mean", "divide the loss by the number of samples"),
        (Contrastive, "a loss taken across the batch (contrastive, by ranks or pairs)", "--adapt.sample_losses"),
    ],
)
def test_unexplained_differences_are_refused_with_their_cause(net, cause, remedy):
    with pytest.raises(InputError) as caught:
        objective_certificate(of(net))
    assert f"{cause}: " in str(caught.value)
    assert remedy in str(caught.value)
    assert "Ruled out: a branch on self.training or trainer.training" in str(caught.value)
    accepted = objective_certificate(of(net, accept=True)).certificate
    assert accepted.outcome is Outcome.UNEXPLAINED
    assert "accepted by --adapt.accept_objective" in accepted.text


def test_a_loss_scored_at_another_epoch_is_refused():
    request = of(Moment)
    request.module.describe_fit(RunState(), request.datamodule, request.loader)
    with pytest.raises(
        InputError, match=r"epoch 7 or step 20 in the loss: .*name the checkpoint of the end of the fit"
    ):
        objective_certificate(request)


def test_a_penalty_of_the_training_step_is_measured():
    with pytest.raises(InputError, match=r"a penalty in training_step that J lacks: give --adapt.l2 0.02\."):
        objective_certificate(of(Net, sample_losses=losses))
    with pytest.raises(InputError, match=r"give --adapt.l2 0.02\."):
        objective_certificate(of(Net, sample_losses=losses, l2=0.005))


def test_a_penalty_that_is_only_stated_is_noted():
    """It is the user's own word, and acts as damping does."""

    class Bare(Net):
        def l2(self):
            return 0.0

    found = certificate(Bare, l2=0.1)
    assert found.outcome is Outcome.EQUAL
    assert found.note == "J has the stated penalty, which a training step lacks: it acts as damping does"
    assert certificate(Bare).note == ""


def test_a_loss_of_the_wrong_shape_is_refused_as_such():
    def reduced(model, batch):
        return F.cross_entropy(model.lin(batch[0]), batch[1])

    with pytest.raises(InputError, match="sample_losses must return one loss a sample"):
        objective_certificate(of(Net, sample_losses=reduced))


def test_another_loss_function_is_refused():
    def squared(model, batch):
        return (model.lin(batch[0]) - F.one_hot(batch[1], 3)).square().sum(1)

    with pytest.raises(InputError, match="another loss of a sample than that of training_step on a batch of one"):
        objective_certificate(of(Net, sample_losses=squared, l2=L2))


def test_weights_that_no_optimizer_has_are_refused_with_the_flag():
    with pytest.raises(InputError) as caught:
        objective_certificate(of(HeadOnly))
    text = str(caught.value)
    assert text.startswith("J is not what was trained: parameters that no optimizer has (body.weight, body.bias).")
    assert "configure_optimizers trains lin.* alone: give --attribution.parameters \"['lin.*']\"." in text


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
