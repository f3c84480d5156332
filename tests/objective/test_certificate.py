"""Gradients of a training step against those of J, on steps written by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from ifloo.errors import InputError
from ifloo.objective.batch_weights import sample_keys
from ifloo.objective.certificate import (
    Cause,
    Coverage,
    ObjectiveCertificate,
    Outcome,
    Part,
    WeightTable,
    parameter_patterns,
)
from ifloo.objective.certify import Subject, certify
from ifloo.objective.step_comparison import BatchOfSingles, DifferenceSum, rounding_bound

D = torch.float64


class Step:
    """A softmax classifier, whose training step is a function of its weights, inputs, labels and the parts it has."""

    longest_sum = 4

    def __init__(self, loss, parts=(), dtype=D):
        self.loss, self.dtype = loss, dtype
        self.parts = {part: part.value for part in parts}
        self.unit_roundoff = torch.finfo(dtype).eps / 2
        g = torch.Generator().manual_seed(0)
        self.theta = torch.randn(3, 4, generator=g, dtype=D).to(dtype)
        self.sizes = {"weight": 12}

    def gradient(self, samples, without=(), rounded=False):
        theta = self.theta.clone()
        if rounded:
            signs = torch.randint(0, 2, theta.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
            theta *= 1 + signs.to(theta) * torch.finfo(theta.dtype).eps
        theta.requires_grad_()
        x, y = collated(samples, self.dtype)
        present = set(self.parts) - set(without)
        (gradient,) = torch.autograd.grad(self.loss(theta, x, y, present), theta)
        return gradient.flatten().double()


def collated(samples, dtype=D):
    return torch.stack([x for x, _ in samples]).to(dtype), torch.tensor([y for _, y in samples])


def samples(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g, dtype=D)
    return list(zip(x, (x[:, :3] + 0.5 * torch.randn(n, 3, generator=g, dtype=D)).argmax(1).tolist(), strict=True))


def examined(step, loss, penalty=None, decay=None, trained=("weight",)):
    """Examines the step against a loss of single samples."""
    plain = Step(lambda theta, x, y, present: loss(theta, x, y), dtype=step.dtype)

    def singles(rows):
        return torch.stack([plain.gradient([one]) for one in rows])

    zero = torch.zeros(12, dtype=D)
    return certify(
        Subject(
            step=step,
            batches=[samples(20, seed) for seed in (1, 2, 3)],
            singles=singles,
            penalty=zero if penalty is None else penalty,
            theta=step.theta.flatten().double(),
            keys_of=lambda sample: sample_keys((sample[0][None], torch.tensor([sample[1]]))),
            decay=zero if decay is None else decay,
            trained=trained,
        )
    )


def cross_entropy(theta, x, y, present=frozenset(), **settings):
    return F.cross_entropy(x @ theta.T, y, **settings)


@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_equal_to_the_rounding_of_the_dtype(dtype):
    found = examined(Step(cross_entropy, dtype=dtype), cross_entropy).certificate
    eps = torch.finfo(dtype).eps
    assert found.outcome is Outcome.EQUAL
    assert found.relative_difference <= found.tolerance
    assert eps < found.tolerance < 1e4 * eps
    assert found.cosine == pytest.approx(1.0)
    assert found.ruled_out == ("parameters that no optimizer has",)


def test_a_difference_just_above_rounding_is_found():
    """A smoothing of 1e-11 moves the gradient by a few times what rounding of float64 allows."""

    def smoothed(theta, x, y, present):
        return cross_entropy(theta, x, y, label_smoothing=1e-11)

    found = examined(Step(smoothed), cross_entropy).certificate
    assert found.outcome is Outcome.UNEXPLAINED
    assert found.tolerance < found.relative_difference < 1e-10


def test_rounding_stays_below_its_bound_and_not_far_below():
    """The bound covers the difference of float32 to float64 at every batch size; it is at most 1,000 x it."""
    for b in (2, 8, 32, 128):
        step, exact = Step(cross_entropy, dtype=torch.float32), Step(cross_entropy)
        exact.theta = step.theta.double()
        rows = [(x.float().double(), y) for x, y in samples(b, b)]
        batch = BatchOfSingles.of(rows, lambda some, exact=exact: torch.stack([exact.gradient([s]) for s in some]))
        response = float((step.gradient(rows, rounded=True) - step.gradient(rows)).norm())
        bound, error = rounding_bound(step, batch, response), float((step.gradient(rows) - batch.mean).norm())
        assert error < bound < 1000 * error


@pytest.mark.parametrize(
    ("part", "remedy"),
    [
        (Part.MOMENT, "name the checkpoint of the end of the fit"),
        (Part.BATCH_HOOKS, "move the change into the dataset or into training_step"),
        (Part.GRADIENT_HOOKS, "freeze the weights instead"),
    ],
)
def test_a_part_that_the_scored_loss_lacks_is_named(part, remedy):
    def changed(theta, x, y, present):
        extra = 0.5 * (x @ theta.T).square().mean() if part in present else 0.0
        return cross_entropy(theta, x, y) + extra

    others = [p for p in (Part.MOMENT, Part.BATCH_HOOKS, Part.GRADIENT_HOOKS) if p is not part]
    found = examined(Step(changed, [part, *others]), cross_entropy).certificate
    assert found.outcome is Outcome.UNEXPLAINED
    assert [cause.name for cause in found.causes] == [part.value]
    assert remedy in found.refusal
    assert set(found.ruled_out) == {*(p.value for p in others), "parameters that no optimizer has"}


def test_two_parts_together_are_named_where_neither_alone_suffices():
    def changed(theta, x, y, present):
        z = x @ theta.T
        return (
            F.cross_entropy(z, y)
            + (Part.MOMENT in present) * z.square().mean()
            + (Part.BATCH_HOOKS in present) * z.abs().mean()
        )

    found = examined(Step(changed, [Part.MOMENT, Part.BATCH_HOOKS]), cross_entropy).certificate
    assert [cause.name for cause in found.causes] == [Part.BATCH_HOOKS.value, Part.MOMENT.value]


def test_evaluation_parts_that_change_nothing_are_ruled_out():
    def changed(theta, x, y, present):
        return cross_entropy(theta, x, y, label_smoothing=0.1 if Part.DROPOUT in present else 0.0)

    step = Step(changed, [Part.DROPOUT, Part.BATCH_STATISTICS, Part.TRAINING_FLAG])
    found = examined(step, cross_entropy).certificate
    assert found.outcome is Outcome.EVALUATION
    assert [cause.name for cause in found.causes] == ["dropout"]
    assert found.ruled_out[:2] == (Part.BATCH_STATISTICS.value, Part.TRAINING_FLAG.value)


def test_weights_are_a_null_vector_of_nothing_else():
    """Weights 1, 5 and 2 of three classes come back to 1e-12; a loss of ranks has no such weights."""
    w = torch.tensor([1.0, 5.0, 2.0], dtype=D)
    found = examined(Step(lambda t, x, y, p: cross_entropy(t, x, y, weight=w)), cross_entropy)
    assert found.certificate.outcome is Outcome.WEIGHTED
    values = {key: found.weights.of((torch.zeros(4, dtype=D), key)) for key in range(3)}
    assert [values[k] / values[0] for k in range(3)] == pytest.approx([1.0, 5.0, 2.0], rel=1e-12)

    def worst(theta, x, y, present):
        return F.cross_entropy(x @ theta.T, y, reduction="none").square().mean().sqrt()

    refused = examined(Step(worst), cross_entropy).certificate
    assert refused.outcome is Outcome.UNEXPLAINED
    assert [cause.name for cause in refused.causes] == [
        "a loss taken across the batch (contrastive, by ranks or pairs), or several terms with different weights or "
        "denominators"
    ]
    assert refused.causes[0].likely


@pytest.mark.parametrize("weight", [1e-2, 30.0, 300.0])
def test_large_weights_are_found_whose_errors_are_larger_than_those_of_rounding(weight):
    """An error of t is that of a weight of w times (1 + w)² / w."""
    w = torch.tensor([1.0, 1.0, weight], dtype=D)
    found = examined(Step(lambda t, x, y, p: cross_entropy(t, x, y, weight=w)), cross_entropy)
    assert found.certificate.outcome is Outcome.WEIGHTED
    assert found.certificate.weights.values["2"] == pytest.approx(weight, rel=1e-11)
    factor = (1 + weight) ** 2 / (4 * weight)
    assert found.weights.allowance == pytest.approx(1 + factor, rel=1e-9)


def test_decay_of_the_optimizer_counts_as_the_penalty_of_j():
    step = Step(cross_entropy)
    decay = 0.01 * step.theta.flatten()
    assert examined(step, cross_entropy, penalty=decay, decay=decay).certificate.note == ""
    found = examined(step, cross_entropy, decay=decay).certificate
    assert found.outcome is Outcome.EQUAL
    assert found.note.endswith("give --adapt.l2 0.01")


def test_a_penalty_that_evaluation_mode_shows_is_not_noted_as_lacking():
    """The gradient of the step in training mode is nearer to that of J without its penalty."""

    def partly(theta, x, y, present):
        share = 0.1 if Part.DROPOUT in present else 1.0
        return cross_entropy(theta, x, y) + share * 0.05 * theta.square().sum()

    step = Step(partly, [Part.DROPOUT, Part.TRAINING_FLAG])
    found = examined(step, cross_entropy, penalty=0.1 * step.theta.flatten()).certificate
    assert found.outcome is Outcome.EVALUATION
    assert [cause.name for cause in found.causes] == ["dropout"]
    assert found.note == ""


def test_samples_without_a_finite_gradient_are_named():
    def broken(theta, x, y):
        return cross_entropy(theta, x, y) * (math.nan if bool(x[0, 0] > 1.5) else 1.0)

    found = examined(Step(cross_entropy), broken).certificate
    assert found.outcome is Outcome.UNEXPLAINED
    assert found.causes[0].name == "samples whose own loss or gradient is not a finite number"


def test_at_a_minimum_the_scale_is_that_of_one_mean_and_there_is_no_angle():
    total = DifferenceSum()
    total.add(torch.tensor([1e-12, 0.0], dtype=D), torch.tensor([0.0, 1e-12], dtype=D), norm=0.1, bound=1e-11)
    found = total.result()
    assert found.equal
    assert found.cosine is None
    assert found.relative == pytest.approx(math.sqrt(2) * 1e-11)


def test_patterns_of_parameters():
    assert parameter_patterns(["head.weight", "head.bias"], ["body.weight"]) == ["head.*"]
    assert parameter_patterns(["net.2.weight", "scale"], ["net.0.weight"]) == ["net.2.*", "scale"]
    assert parameter_patterns(["net.weight"], ["net.bias"]) == ["net.weight"]


def test_the_sentence_of_an_evaluation_objective():
    found = ObjectiveCertificate(Outcome.EVALUATION, 0.06, 0.998, 1e-5, (30,), (Cause("dropout", "none needed."),))
    assert found.text == (
        "scores are of the evaluation-mode objective; the gradient of a training step differs by 6 %, cosine .998 "
        "(dropout)"
    )
    found.require()


def test_the_sentence_of_weights_lists_the_first_ones():
    table = WeightTable("the value of item 1", {str(k): float(k + 1) for k in range(10)})
    found = ObjectiveCertificate(Outcome.WEIGHTED, 1e-15, 1.0, 1e-13, (30,), weights=table)
    assert found.text == (
        "a training step weighs its samples by the value of item 1 (0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7, 7: 8, "
        "... 10 in all); J has these weights (relative difference 1.0e-15)"
    )


def test_a_cause_that_is_not_proved_is_called_likely():
    cause = Cause("a loss of ranks", "state it.", likely=True)
    found = ObjectiveCertificate(Outcome.UNEXPLAINED, 0.5, 0.9, 1e-13, (30,), (cause,))
    assert found.text.endswith("differs by 50 %, cosine .900 (most likely a loss of ranks)")
    assert "\n  the most likely cause: a loss of ranks: state it.\n" in found.refusal
    assert found.record()["causes"] == ["most likely a loss of ranks"]


def test_an_evaluation_objective_of_some_rows_leaves_the_others_open():
    cause = Cause("dropout", "none needed.")
    found = ObjectiveCertificate(
        Outcome.EVALUATION, 0.06, 0.998, 1e-5, (30,), (cause,), coverage=Coverage(30, 2000)
    ).causes_of_a_distance
    assert found.startswith(
        "Not ruled out: dropout (a training step differs by 6 %, cosine .998), another loss on rows that were not "
        "compared, a fit that ended early"
    )


def test_an_unexplained_difference_raises_unless_accepted():
    found = ObjectiveCertificate(Outcome.UNEXPLAINED, 0.5, 0.9, 1e-13, (30,), ruled_out=("dropout",))
    with pytest.raises(InputError) as caught:
        found.require()
    assert str(caught.value) == (
        "J is not what was trained: the gradient of a training step differs by 50 %, cosine .900 (cause not found).\n"
        "  Ruled out: dropout.\n"
        "  Scores of J as it is: accept_objective=True; every output then carries this difference."
    )
