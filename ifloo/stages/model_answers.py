"""What a model makes of test samples, in words: the class it predicts, or the answer it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from typing_extensions import Protocol, runtime_checkable

from ifloo.data.protocol import AnswerTokenizer, ConversationSet, DataNotes, QueryBatches, SampleSet
from ifloo.objective import OutputLosses, Speaker, scoring
from ifloo.objective.batches import to_module, without_ids

ANSWERED_AT_ONCE = 256  # test samples in one batch of the forward pass that answers them
MOST_QUESTIONS = 20  # different ones, beyond which exact match is not told question by question


@runtime_checkable
class Tests(QueryBatches, Protocol):
    """The test samples of a data module, by id and as a model reads them."""

    @property
    def test_set(self) -> SampleSet: ...


class Answer(NamedTuple):
    """Token ids of an answer, without the one that ends it.

    Attributes:
        said: by the model.
        right: what it should have said.
    """

    said: list[int]
    right: list[int]


def outcomes(module: nn.Module, datamodule: Tests, test_ids: Sequence[int]) -> dict[int, str]:
    """What the model makes of each of these test samples; nothing for a model without classes and without words."""
    if (talk := _talk(module, datamodule)) is not None:
        answers = talk.answers(test_ids)
        return {t: talk.tokenizer.decode(answer.said) for t, answer in zip(test_ids, answers, strict=True)}
    if not isinstance(module, OutputLosses):
        return {}
    with torch.no_grad(), scoring(module):
        outputs = module.outputs(to_module(without_ids(datamodule.test_batch(test_ids)), module))
    if outputs.ndim != 2:
        return {}
    return {t: f"predicted {int(row.argmax())}" for t, row in zip(test_ids, outputs, strict=True)}


def exact_match(module: nn.Module, datamodule: Tests) -> dict[str, dict[str, float | int]]:
    """By question of the test set: the share of `rows` answered right to the last token, the most frequent first.

    Nothing for a model that does not answer, or where almost every row asks something else.
    """
    talk = _talk(module, datamodule)
    if talk is None:
        return {}
    ids = [int(i) for i in datamodule.test_set.ids]
    if (asked := _questions(talk.rows, ids)) is None:
        return {}
    right: dict[str, list[bool]] = {question: [] for question in sorted(set(asked))}
    for question, answer in zip(asked, talk.answers(ids), strict=True):
        right[question].append(answer.said == answer.right)
    often = sorted(right.items(), key=lambda item: -len(item[1]))
    return {question: {"share": sum(each) / len(each), "rows": len(each)} for question, each in often}


@dataclass(frozen=True)
class _Talk:
    """A model that answers, and the conversations it is asked.

    Attributes:
        module: The model, as a module.
        speaker: The model, as one that writes answers.
        tokenizer: The tokenizer of the conversations.
        data: The data module, which gives their batches.
        rows: The test samples.
    """

    module: nn.Module
    speaker: Speaker
    tokenizer: AnswerTokenizer
    data: QueryBatches
    rows: ConversationSet

    def answers(self, test_ids: Sequence[int]) -> Iterator[Answer]:
        """The answers to these test samples, some hundred at a time."""
        end = self.tokenizer.eos
        for start in range(0, len(test_ids), ANSWERED_AT_ONCE):
            batch = self.data.test_batch(test_ids[start : start + ANSWERED_AT_ONCE])
            assert isinstance(batch, Mapping)
            with torch.no_grad(), scoring(self.module):
                rows = self.speaker.generated(to_module(batch, self.module), end)
            for ids, labels in zip(rows.tolist(), batch["labels"].tolist(), strict=True):
                first, last = _last_answer(labels)
                yield Answer(_until(ids[first:], end), _until(labels[first:last], end))


def _talk(module: nn.Module, data: Tests) -> _Talk | None:
    """None for a model that does not answer, or data that are no conversations."""
    tokenizer, rows = DataNotes(data).tokenizer, data.test_set
    if tokenizer is None or not isinstance(module, Speaker) or not isinstance(rows, ConversationSet):
        return None
    return _Talk(module, module, tokenizer, data, rows)


def _questions(data: ConversationSet, ids: Sequence[int]) -> list[str] | None:
    asked: list[str] = []
    different: set[str] = set()
    for i in ids:
        asked.append(data.question(i))
        different.add(asked[-1])
        if len(different) > MOST_QUESTIONS:
            return None
    return asked


def _last_answer(labels: Sequence[int]) -> tuple[int, int]:
    """Where the last labelled stretch begins and ends; (0, 0) where nothing is labelled."""
    last = max((at + 1 for at, label in enumerate(labels) if label >= 0), default=0)
    first = last
    while first and labels[first - 1] >= 0:
        first -= 1
    return first, last


def _until(ids: Sequence[int], end: int) -> list[int]:
    return list(ids[: ids.index(end)] if end in ids else ids)
