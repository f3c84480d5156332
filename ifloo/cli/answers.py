"""What a model makes of test samples, in words: the class it predicts, or the answer it gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ifloo.objective import Batch, OutputLosses, scoring
from ifloo.objective.batches import as_made, moved
from ifloo.report.gallery import ConversationSet
from ifloo.store import JSON

ANSWERED_AT_ONCE = 256  # test samples in one batch of the forward pass that answers them
MOST_QUESTIONS = 20  # different ones, beyond which exact match is not told question by question


@runtime_checkable
class Speaker(Protocol):
    """A language model that answers."""

    def generated(self, batch: Batch, end: int) -> Tensor:
        """Rows of token ids, the last answer of each replaced by the model's, `end` after it."""


class Answer(NamedTuple):
    """Token ids of an answer, without the one that ends it.

    Attributes:
        said: by the model.
        right: what it should have said.
    """

    said: list[int]
    right: list[int]


def outcomes(module: Any, datamodule: Any, test_ids: Sequence[int]) -> dict[int, str]:
    """What the model makes of each of these test samples; nothing for a model without classes and without words."""
    if _speaks(module, datamodule):
        decode = datamodule.tokenizer.decode
        answers = _answers(module, datamodule, test_ids)
        return {t: decode(answer.said) for t, answer in zip(test_ids, answers, strict=True)}
    if not isinstance(module, OutputLosses):
        return {}
    with torch.no_grad(), scoring(module):  # type: ignore[arg-type]
        outputs = module.outputs(_moved(as_made(datamodule.test_batch(test_ids)), module))
    if outputs.ndim != 2:
        return {}
    return {t: f"predicted {int(row.argmax())}" for t, row in zip(test_ids, outputs, strict=True)}


def exact_match(module: Any, datamodule: Any) -> dict[str, dict[str, JSON]]:
    """By question of the test set: the share of `rows` answered right to the last token, the most frequent first.

    Nothing for a model that does not answer, or where almost every row asks something else.
    """
    if not _speaks(module, datamodule):
        return {}
    ids = [int(i) for i in datamodule.test_set.ids]
    if (asked := _questions(datamodule.test_set, ids)) is None:
        return {}
    right: dict[str, list[bool]] = {question: [] for question in sorted(set(asked))}
    for question, answer in zip(asked, _answers(module, datamodule, ids), strict=True):
        right[question].append(answer.said == answer.right)
    often = sorted(right.items(), key=lambda item: -len(item[1]))
    return {question: {"share": sum(each) / len(each), "rows": len(each)} for question, each in often}


def _speaks(module: Any, datamodule: Any) -> bool:
    return (
        isinstance(module, Speaker)
        and hasattr(datamodule, "tokenizer")
        and isinstance(datamodule.test_set, ConversationSet)
    )


def _questions(data: ConversationSet, ids: Sequence[int]) -> list[str] | None:
    asked: list[str] = []
    different: set[str] = set()
    for i in ids:
        asked.append(data.question(i))
        different.add(asked[-1])
        if len(different) > MOST_QUESTIONS:
            return None
    return asked


def _answers(module: Any, datamodule: Any, test_ids: Sequence[int]) -> Iterator[Answer]:
    end = datamodule.tokenizer.eos
    for start in range(0, len(test_ids), ANSWERED_AT_ONCE):
        batch = datamodule.test_batch(test_ids[start : start + ANSWERED_AT_ONCE])
        with torch.no_grad(), scoring(module):
            rows = module.generated(_moved(batch, module), end)
        for ids, labels in zip(rows.tolist(), batch["labels"].tolist(), strict=True):
            first, last = _last_answer(labels)
            yield Answer(_until(ids[first:], end), _until(labels[first:last], end))


def _last_answer(labels: Sequence[int]) -> tuple[int, int]:
    """Where the last labelled stretch begins and ends; (0, 0) where nothing is labelled."""
    last = max((at + 1 for at, label in enumerate(labels) if label >= 0), default=0)
    first = last
    while first and labels[first - 1] >= 0:
        first -= 1
    return first, last


def _until(ids: Sequence[int], end: int) -> list[int]:
    return list(ids[: ids.index(end)] if end in ids else ids)


def _moved(batch: Batch, module: Any) -> Batch:
    weight = next(module.parameters())
    return moved(batch, weight.device, weight.dtype)
