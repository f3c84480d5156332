"""Findings from a training loader and its dataset: which samples are drawn, and whether they stay the same.

The checks read the loader's settings and, twice, a few samples. They miss a transform that changes one sample in
thousands, or that starts after the first epoch.
"""

from __future__ import annotations

import lightning as L
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from ifloo.doctor.finding import Finding, Severity
from ifloo.errors import InputError
from ifloo.models.hooks import overridden
from ifloo.objective import Batch, sample_ids
from ifloo.objective.augmentation import Augmentation, find_augmentation
from ifloo.objective.batch_samplers import SamplerBatches
from ifloo.objective.batches import batch_size, fetch_samples
from ifloo.objective.dealt_samplers import own_sampler
from ifloo.objective.epoch_weights import epoch_weights
from ifloo.objective.id_rule import third_ids
from ifloo.objective.layers import BATCH_HOOKS
from ifloo.objective.loaders import rule_behind, sample_count, unwrap_loader
from ifloo.objective.randomness import undisturbed
from ifloo.objective.sampling import refuse_partial

FEW_SAMPLES = 100  # training samples; with fewer, each is more than one percent of J


def loader_findings(loader: object, where: str) -> list[Finding]:
    """Runs all checks of a loader; returns nothing for the kinds that `sequential` refuses with an error.

    Args:
        loader: Loader of the training data.
        where: Name of the loader in the findings.
    """
    if not isinstance(loader, DataLoader):
        return [_no_loader(loader, where)]
    if isinstance(loader.dataset, IterableDataset) or not (n := sample_count(loader)):
        return []
    return [*_sampling(loader, n, where), *_count(n, where), *_samples(loader, where)]


def hook_findings(module: object, datamodule: object) -> list[Finding]:
    """Reports hooks that change a batch between loader and training step, since scores read the loader directly."""
    found = [
        f"{type(owner).__name__}.{name}"
        for owner, base in ((module, L.LightningModule), (datamodule, L.LightningDataModule))
        for name in overridden(owner, BATCH_HOOKS, base)
    ]
    if not found:
        return []
    return [
        Finding(
            "batches changed on their way from the loader to the model",
            ", ".join(found),
            "Scores, curvature and |grad J| are of the batches as the loader gives them, training of what the hook "
            "makes of them.",
            "Do in the dataset or in collate_fn what the hook does.",
            Severity.WARNING,
        )
    ]


def _no_loader(loader: object, where: str) -> Finding:
    return Finding(
        f"a {type(loader).__name__} in place of one DataLoader",
        where,
        "J runs over the samples of one DataLoader, each with one id; a run stops here.",
        "Return one torch.utils.data.DataLoader (torch.utils.data.ConcatDataset joins datasets).",
        Severity.FATAL,
    )


def _sampling(loader: DataLoader[Batch], n: int, where: str) -> list[Finding]:
    """Reports samples that training leaves out, or that are drawn by an unknown rule."""
    batches = loader.batch_sampler
    if batches is None:  # one sample at a time
        return []
    if type(batches) is not BatchSampler:
        return [
            Finding(
                f"batches drawn by {type(batches).__name__}",
                f"{where}, batch_sampler",
                f"J weighs the {n} samples as the epochs of this sampler do, which are followed; where a module states "
                "its losses (SampleLossModule), J counts each sample once.",
                "None needed if every sample is dealt out once; else give the dataset as it is drawn (shuffle=True).",
                Severity.WARNING,
            )
        ]
    if type(batches.sampler) not in (RandomSampler, SequentialSampler):
        return _sampled_apart(loader, batches, n, where)
    left = n % batches.batch_size if batches.drop_last else 0
    return [_left_out(left, n, batches, where)] if left else []


def _sampled_apart(loader: DataLoader[Batch], batches: BatchSampler, n: int, where: str) -> list[Finding]:
    """Reports the samples that a sampler of another class leaves out, as its epochs show it."""
    left, name = n % batches.batch_size if batches.drop_last else 0, type(own_sampler(batches.sampler)).__name__
    try:
        refuse_partial(loader)
        weights = epoch_weights(loader)
    except InputError:  # an objective refuses it itself
        return []
    if weights is None or not weights.untrained:
        return [_left_out(left, n, batches, where)] if left else []
    dropped = " (drop_last=True)" if batches.drop_last else ""
    return [
        Finding(
            f"part of the samples drawn by {name}{dropped}",
            f"{where}, sampler",
            f"{weights.untrained:,} of {n:,} samples are never trained on: their weight in J, and with it their score, "
            "is 0.",
            "Set drop_last=False and draw all samples; for a part of the data wrap the dataset "
            "(torch.utils.data.Subset).",
            Severity.WARNING,
        )
    ]


def _left_out(left: int, n: int, batches: BatchSampler, where: str) -> Finding:
    what, where = f"drop_last=True with {n} samples in batches of {batches.batch_size}", f"{where}, drop_last"
    if left < n and not isinstance(batches.sampler, SequentialSampler):
        which = (
            f"{left} of {n} samples, others each time, are left out of an epoch; on average all count alike, as in J."
        )
        return Finding(what, where, which, "None needed.", Severity.NOTE)
    return Finding(
        what,
        where,
        f"The last {left} of {n} samples are never trained on: their weight in J, and with it their score, is 0. Where "
        "a module states its losses (SampleLossModule), J counts them, and their scores say nothing.",
        "Set drop_last=False and fit again.",
        Severity.FATAL if left == n else Severity.WARNING,
    )


def _count(n: int, where: str) -> list[Finding]:
    if n >= FEW_SAMPLES:
        return []
    return [
        Finding(
            f"{n} training sample{'s' if n > 1 else ''}",
            where,
            "Nothing would be left without it."
            if n == 1
            else f"Each is {1 / n:.1%} of J: a removal is a large step, which its derivative predicts less well.",
            "Take more samples, or trust the refits rather than the scores.",
            Severity.FATAL if n == 1 else Severity.WARNING,
        )
    ]


def _samples(loader: DataLoader[Batch], where: str) -> list[Finding]:
    """Reads a few samples again and compares them; an error while reading passes through."""
    dataset, collate = unwrap_loader(loader)
    with undisturbed():
        first = collate(fetch_samples(dataset, [0]))
        found = find_augmentation(loader)
    return [*([] if found is None else [_augmented(found, where)]), *_missing_ids(loader, first, where)]


def _augmented(found: Augmentation, where: str) -> Finding:
    if found.seeded:
        return Finding(
            found.how,
            where,
            "Handled: scores are of one draw of each sample (or the mean over --adapt.draws), under seeds of their "
            "own, the same in every pass and run; training saw others (augmentation, or noise drawn in the dataset).",
            "None needed; --adapt.draws K scores the mean over K draws of each sample.",
            Severity.WARNING,
        )
    return Finding(
        found.how,
        where,
        "Scores would be of another sample than was trained on, and of another one each time: its random numbers do "
        "not come from the generators of torch, numpy and Python, which are seeded for each sample.",
        "Draw them from these generators; or turn random transforms off, for the fit too.",
        Severity.FATAL,
    )


def _third_ignored(where: str) -> Finding:
    return Finding(
        "a third item of whole numbers that are not the positions of the samples",
        where,
        "It is taken for data: the id of a sample is its position in the dataset.",
        "None needed if it is data, such as a length or a label; if it is the id, give `--adapt.ids third`.",
        Severity.NOTE,
    )


def _missing_ids(loader: DataLoader[Batch], batch: Batch, where: str) -> list[Finding]:
    third, rule = third_ids(batch, b := batch_size(batch)), rule_behind(loader)
    if third is not None and rule.source != "third":
        return [] if torch.equal(third, rule.of_rows(torch.arange(b))) else [_third_ignored(where)]
    batches = loader.batch_sampler
    drawn_by = batches.sampler if isinstance(batches, SamplerBatches) else loader.sampler
    if sample_ids(batch) is not None or not isinstance(drawn_by, RandomSampler):
        return []
    n = sample_count(loader)
    return [
        Finding(
            "shuffled batches without sample ids",
            where,
            f"Handled: the id of a sample is its position in the dataset, 0 to {n - 1}, in whatever order it is drawn.",
            "None needed while the dataset keeps its order; else give each sample an id (key `idx` or "
            "`sample_index`, or the third item of (x, y, idx) and `--adapt.ids third`).",
            Severity.NOTE,
        )
    ]
