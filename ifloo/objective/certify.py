"""Examination of a training step: whether J is what it trains, and if not, what the difference is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ifloo.objective.batch_weights import BatchWeights, ComparedBatch, KeysOf, find_weights
from ifloo.objective.certificate import (
    EVALUATION_PARTS,
    Cause,
    Coverage,
    ObjectiveCertificate,
    Outcome,
    Part,
    untrained_cause,
)
from ifloo.objective.restriction import restricted_singles, restricted_step
from ifloo.objective.step_comparison import (
    BatchOfSingles,
    Difference,
    DifferenceSum,
    Samples,
    SingleGradients,
    TrainingStep,
    Without,
    rounding_bound,
)

OTHER_PARTS = (
    Part.BATCH_HOOKS,
    Part.MOMENT,
    Part.GRADIENT_HOOKS,
    Part.STATE,
    Part.BATCH_INDEX,
)  # parts that no evaluation mode takes away
REMEDIES = {
    Part.BATCH_HOOKS: "the scored loss is without them; move the change into the dataset or into training_step, or "
    "state the loss: --adapt.sample_losses.",
    Part.MOMENT: "the scored loss has another epoch or step than the end of the fit; name the checkpoint of the end of "
    "the fit, which holds both.",
    Part.STATE: "the checkpoint holds none of it; keep it in a buffer, in on_save_checkpoint, or set it in __init__.",
    Part.BATCH_INDEX: "the scored loss is that of batch_idx 0; where the steps of a fit have several losses, state the one "
    "to score: --adapt.sample_losses.",
    Part.GRADIENT_HOOKS: "no loss has this gradient; freeze the weights instead (requires_grad_(False)), or attribute "
    "the others: --attribution.parameters.",
}


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        step: The user's training step.
        batches: Samples of each batch to compare.
        singles: Function that computes the gradients of the losses of samples, as they are scored.
        penalty: Gradient of the penalty of J, `[q]`.
        theta: Values of the attributed parameters, `[q]`.
        keys_of: Function of a sample that returns what its weight in a batch may depend on.
        decay: Gradient that the optimizer itself adds, `[q]`; zeros if it adds none.
        trained: Names of the attributed parameters that an optimizer has; None if the optimizers are not known.
        coverage: Number of different rows in the batches, of all; None if the batches decide for all rows.
        decoupled: Weight decay that the optimizer applies beside the gradient; 0 if it applies none.
        by_hand: Whether the training step itself runs backward passes and optimizer steps.
        doubted: Cause of a difference in what was trained that no gradient shows; None if there is none.
    """

    step: TrainingStep
    batches: Sequence[Samples]
    singles: SingleGradients
    penalty: Tensor
    theta: Tensor
    keys_of: KeysOf
    decay: Tensor
    trained: tuple[str, ...] | None = None
    coverage: Coverage | None = None
    decoupled: float = 0.0
    by_hand: bool = False
    doubted: Cause | None = None


@dataclass(frozen=True)
class Examined:
    """Certificate, and the weights that belong to it.

    Attributes:
        certificate: Result of the examination.
        weights: Weights of the samples in the loss of a batch; None if all are equal.
    """

    certificate: ObjectiveCertificate
    weights: BatchWeights | None = None


def certify(subject: Subject) -> Examined:
    """Compares the gradient of a training step with that of J, and finds what makes a difference."""
    examination = _Examination(subject)
    found = examination.result()
    certificate = replace(found.certificate, note=examination.note, coverage=subject.coverage)
    untrained = () if subject.trained is None else tuple(n for n in subject.step.sizes if n not in subject.trained)
    if untrained:
        cause = untrained_cause(untrained, subject.trained or ())
        causes = certificate.causes
        if certificate.outcome is Outcome.UNEXPLAINED and subject.trained:
            rest = _Examination(restricted(subject, subject.trained)).result().certificate
            causes = rest.causes if rest.outcome is Outcome.UNEXPLAINED else ()
        certificate = replace(certificate, outcome=Outcome.UNEXPLAINED, causes=(cause, *causes))
    elif subject.doubted is not None:
        causes = certificate.causes if certificate.outcome is Outcome.UNEXPLAINED else ()
        certificate = replace(certificate, outcome=Outcome.UNEXPLAINED, causes=(subject.doubted, *causes))
    elif subject.trained is not None:
        certificate = replace(certificate, ruled_out=(*certificate.ruled_out, "parameters that no optimizer has"))
    return replace(found, certificate=certificate)


def restricted(subject: Subject, names: Sequence[str]) -> Subject:
    """Returns the examination of the same step in some of the parameters."""
    kept = torch.cat([torch.full((size,), name in names) for name, size in subject.step.sizes.items()])
    kept = kept.to(subject.theta.device)
    return replace(
        subject,
        step=restricted_step(subject.step, names, kept),
        singles=restricted_singles(subject.singles, kept),
        penalty=subject.penalty[kept],
        theta=subject.theta[kept],
        decay=subject.decay[kept],
    )


class _Examination:
    """Comparison of the batches of a subject, with its parts taken away in turn."""

    def __init__(self, subject: Subject) -> None:
        step = subject.step
        self.subject, self.step = subject, step
        self.evaluation = EVALUATION_PARTS.intersection(step.parts)
        self.singles = [BatchOfSingles.of(samples, subject.singles) for samples in subject.batches]
        self.still = [step.gradient(samples, self.evaluation) for samples in subject.batches]
        self.bounds = []
        for batch, still in zip(self.singles, self.still, strict=True):
            response = float((step.gradient(batch.samples, self.evaluation, rounded=True) - still).norm())
            added = 4 * step.unit_roundoff * float(subject.penalty.norm())
            self.bounds.append(rounding_bound(step, batch, response) + added)
        # The penalty of J may be in the training step, or in the decay of the optimizer, or only stated.
        self.offsets = [subject.penalty]
        if bool(subject.decay.any()):
            self.offsets.append(subject.penalty - subject.decay)
        if bool(subject.penalty.any()):
            self.offsets.append(torch.zeros_like(subject.penalty))
        self.chosen = 0

    def difference(self, without: Without, weights: BatchWeights | None = None) -> Difference:
        """Compares the training step without some parts with J."""
        trained = [
            self.still[k] if without == self.evaluation else self.step.gradient(batch.samples, without)
            for k, batch in enumerate(self.singles)
        ]
        expected = [b.mean if weights is None else b.weighted(weights.of_all(b.samples)) for b in self.singles]
        found = [self._sum(trained, expected, offset) for offset in self.offsets]
        best = min(range(len(found)), key=lambda k: found[k].ratio)
        if found[best].ratio <= (1.0 if weights is None else weights.allowance):
            self.chosen = best  # where random numbers are part of the difference, the least one tells nothing
        return found[best]

    def _sum(self, trained: Sequence[Tensor], expected: Sequence[Tensor], offset: Tensor) -> Difference:
        total = DifferenceSum()
        for one, other, batch, bound in zip(trained, expected, self.singles, self.bounds, strict=True):
            norm = max(float((other + offset).norm()), batch.norm)
            total.add(one, other + offset, norm, bound)
        return total.result()

    def result(self) -> Examined:
        """Returns the outcome, from the most common to the least."""
        trained = self.difference(frozenset())
        if not all(bool(torch.isfinite(batch.mean).all()) for batch in self.singles):
            return Examined(self._certificate(Outcome.UNEXPLAINED, trained, (_NOT_FINITE,), ()))
        if trained.equal:
            return Examined(self._certificate(Outcome.EQUAL, trained, (), tuple(self._words(self.step.parts))))
        if self.evaluation and self.difference(self.evaluation).equal:
            return self._evaluation(trained, None)
        weights = self._weights()
        if weights is None:
            return self._random_hooks(trained) or self._unexplained(trained)
        weighted = self.difference(frozenset(), weights)
        if weighted.equal or not self.evaluation or weighted.ratio <= weights.allowance:
            return Examined(self._certificate(Outcome.WEIGHTED, weighted, (), (), weights), weights)
        return self._evaluation(weighted, weights)

    @property
    def note(self) -> str:
        """Sentence on a decay of the optimizer or a penalty of J that the other lacks; empty if there is none."""
        outside = f"the optimizer decays weights by {self.subject.decoupled:.4g} outside of J"
        return "; ".join(filter(None, [self._penalty_note(), outside if self.subject.decoupled else ""]))

    def _penalty_note(self) -> str:
        decay, penalty = self.subject.decay, self.subject.penalty
        if bool(decay.any()) and float((penalty - decay).norm()) > 1e-6 * float(decay.norm()):
            strength = self._strength(decay)
            l2 = f"{strength:.4g}"
            if float((decay - strength * self.subject.theta).norm()) > 1e-6 * float(decay.norm()):
                return (
                    "the optimizer adds weight decay that is not the same for all weights, which J lacks: give it as a "
                    "function of the model: --adapt.penalty"
                )
            return f"the optimizer adds weight decay {l2}, which J lacks: give --adapt.l2 {l2}"
        if bool(penalty.any()) and not bool(decay.any()) and not bool(self.offsets[self.chosen].any()):
            return "J has the stated penalty, which a training step lacks: it acts as damping does"
        return ""

    def _strength(self, slope: Tensor) -> float:
        """Returns λ of a gradient λθ."""
        theta = self.subject.theta
        return float(slope @ theta) / max(float(theta @ theta), 1e-300)

    def _weights(self) -> BatchWeights | None:
        for offset in self.offsets:
            compared = [
                ComparedBatch(batch, still - offset, bound)
                for batch, still, bound in zip(self.singles, self.still, self.bounds, strict=True)
            ]
            found = find_weights(self.step, compared, self.subject.keys_of, self.evaluation, offset)
            if found is not None:
                return found
        return None

    def _evaluation(self, trained: Difference, weights: BatchWeights | None) -> Examined:
        """Returns the outcome where evaluation mode takes the whole difference away; names what is needed for that."""
        limit = 1.0 if weights is None else weights.allowance
        alone = [p for p in self._ordered(self.evaluation) if self.difference(frozenset({p}), weights).ratio <= limit]
        if alone:
            parts = alone[:1]
        else:
            parts = [
                p
                for p in self._ordered(self.evaluation)
                if self.difference(self.evaluation - {p}, weights).ratio > limit
            ]
        causes = tuple(Cause(words, "none needed.") for words in self._words(parts or list(self.evaluation)))
        others = tuple(self._words([p for p in self.step.parts if p not in parts]))
        return Examined(self._certificate(Outcome.EVALUATION, trained, causes, others, weights), weights)

    def _random_hooks(self, trained: Difference) -> Examined | None:
        """Returns the outcome where batch hooks that draw at random are the whole difference; None if they are not."""
        if Part.BATCH_HOOKS not in self.step.parts:
            return None
        # Hooks that are a fixed function of each sample keep the loss of a batch a mean, with them and without.
        if not self._additive(self.evaluation | {Part.BATCH_HOOKS}) or self._additive(self.evaluation):
            return None
        name = f"{self.step.parts[Part.BATCH_HOOKS]}, which draw at random or mix samples"
        others = tuple(self._words([p for p in self.step.parts if p is not Part.BATCH_HOOKS]))
        cause = Cause(name, "none needed.")
        return Examined(self._certificate(Outcome.EVALUATION, trained, (cause,), others))

    def _additive(self, without: frozenset[Part]) -> bool:
        """Tells whether the step on a batch has the mean of its own gradients on batches of one."""

        def singles(samples: Samples) -> Tensor:
            return torch.stack([self.step.gradient([sample], without) for sample in samples])

        total = DifferenceSum()
        for batch, bound in zip(self.singles, self.bounds, strict=True):
            own = BatchOfSingles.of(batch.samples, singles)
            total.add(self.step.gradient(batch.samples, without), own.mean, own.norm, bound)
        return total.result().equal

    def _unexplained(self, trained: Difference) -> Examined:
        causes: list[Cause] = []
        ruled_out = self._words(self._ordered(self.evaluation))
        for part in (p for p in OTHER_PARTS if p in self.step.parts):
            if causes and part is Part.STATE:  # it includes hooks on weights, which are a cause of their own
                continue
            if self.difference(self.evaluation | {part}).equal:
                causes.append(Cause(self.step.parts[part], REMEDIES[part]))
            else:
                ruled_out.append(self.step.parts[part])
        together = self.evaluation.union(p for p in OTHER_PARTS if p in self.step.parts)
        if not causes and len(together) > len(self.evaluation) + 1 and self.difference(together).equal:
            names = [p for p in OTHER_PARTS if p in self.step.parts]
            causes = [Cause(self.step.parts[p], REMEDIES[p]) for p in names]
            ruled_out = [words for words in ruled_out if words not in [c.name for c in causes]]
        if not causes:
            causes += self._of_the_loss(ruled_out)
        certificate = self._certificate(Outcome.UNEXPLAINED, trained, tuple(causes), tuple(ruled_out))
        return Examined(certificate)

    def _of_the_loss(self, ruled_out: list[str]) -> list[Cause]:
        """Returns the causes that lie in the loss itself: a sum, a penalty, samples that depend on each other."""
        own = [still - offset for still, offset in zip(self.still, [self.offsets[0]] * len(self.still), strict=True)]
        if all(
            float((one - len(b.samples) * b.mean).norm()) <= len(b.samples) * bound
            for one, b, bound in zip(own, self.singles, self.bounds, strict=True)
        ):
            return [Cause("a sum over the batch in place of the mean", "divide the loss by the number of samples.")]
        if self._draws_at_random():
            return [_RANDOM]
        if self._adds_up():
            return [_SUM_AND_PENALTY]
        theta = self.subject.theta
        gaps = [one - b.mean for one, b in zip(own, self.singles, strict=True)]
        l2 = sum(float(gap @ theta) for gap in gaps) / max(len(gaps) * float(theta @ theta), 1e-300)
        if all(float((gap - l2 * theta).norm()) <= 2 * bound for gap, bound in zip(gaps, self.bounds, strict=True)):
            value = f"{l2 + self._strength(self.subject.penalty):.4g}"
            return [Cause("a penalty in training_step that J lacks", f"give --adapt.l2 {value}.")]
        ruled_out += ["a sum in place of the mean", "a penalty on all weights", "weights of samples in a batch"]
        if not self._differs_alone():
            return [_ACROSS]
        return [_BY_HAND if self.subject.by_hand else _OTHER_LOSS]

    def _draws_at_random(self) -> bool:
        """Tells whether random numbers of another seed give the step another gradient."""
        without = self.evaluation | {Part.SEED}
        return any(
            float((self.step.gradient(batch.samples, without) - still).norm()) > 2 * bound
            for batch, still, bound in zip(self.singles, self.still, self.bounds, strict=True)
        )

    def _adds_up(self) -> bool:
        """Tells whether the loss of a batch is s Σ ℓ_i + R, where that of a sample alone is s ℓ_i + R.

        Then b times the mean gradient of single samples exceeds the gradient of the step by (b - 1) ∇R for any batch.
        """
        batch, bound = self.singles[0], self.bounds[0]
        half = len(batch.samples) // 2
        if half < 2:
            return False
        found = []
        for samples in (batch.samples[:half], batch.samples[half:]):
            one, b = BatchOfSingles.of(samples, batch.singles), len(samples)
            found.append((b * one.mean - self.step.gradient(samples, self.evaluation)) / (b - 1))
        return float((found[0] - found[1]).norm()) <= 8 * bound

    def _differs_alone(self) -> bool:
        """Tells whether the step on a batch of one differs from the loss of the sample."""
        batch, bound = self.singles[0], self.bounds[0]
        alone = self.step.gradient(batch.samples[:1], self.evaluation) - batch.row(0)
        allowed = bound * len(batch.samples) ** 0.5
        return all(not float((alone - offset).norm()) <= allowed for offset in self.offsets)

    def _certificate(
        self,
        outcome: Outcome,
        difference: Difference,
        causes: tuple[Cause, ...],
        ruled_out: tuple[str, ...],
        weights: BatchWeights | None = None,
    ) -> ObjectiveCertificate:
        rows = tuple(len(batch.samples) for batch in self.singles)
        table = None if weights is None else weights.table
        return ObjectiveCertificate(
            outcome, difference.relative, difference.cosine, difference.allowed, rows, causes, ruled_out, table
        )

    def _ordered(self, parts: frozenset[Part]) -> list[Part]:
        return [part for part in Part if part in parts]

    def _words(self, parts: Sequence[Part] | object) -> list[str]:
        return [self.step.parts[part] for part in Part if part in parts]  # type: ignore[operator]


_RANDOM = Cause(
    "random numbers that training_step draws, by which it mixes or changes samples",
    "draw them only `if self.training:`; scores are then of the step without them.",
)
_SUM_AND_PENALTY = Cause(
    "a sum over the batch in place of the mean, beside a penalty",
    "divide the loss by the number of samples in the batch, which a constant is not for a sample alone.",
)
_BY_HAND = Cause(
    "a training_step that optimizes by hand, whose first step has another gradient than the stated losses",
    "state the loss that its optimizers minimise in --adapt.sample_losses and --adapt.penalty; several losses, or weights "
    "that it moves between backward passes, have none.",
)
_OTHER_LOSS = Cause(
    "another loss of a sample than that of training_step on a batch of one",
    "state what training_step adds up in --adapt.sample_losses and --adapt.penalty, or leave both out.",
)
_NOT_FINITE = Cause(
    "samples whose own loss or gradient is not a finite number",
    "leave such samples out (all targets ignored, labels out of range), or give them a loss of 0.",
)
_ACROSS = Cause(
    "a loss taken across the batch (contrastive, by ranks or pairs), or several terms with different weights or "
    "denominators",
    "state the loss of one sample: --adapt.sample_losses; where no such loss exists, these scores do not exist.",
    likely=True,
)
