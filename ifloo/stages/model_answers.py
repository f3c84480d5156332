"""Outputs of a model on test samples as text: the class that it predicts, or the answer that it generates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from typing_extensions import Protocol, runtime_checkable

from ifloo.data.protocol import AnswerTokenizer, ConversationSet, DataNotes, QueryBatches, SampleSet
from ifloo.objective import Speaker, scoring
from ifloo.objective.batches import to_module, without_ids
from ifloo.objective.protocol import generates, states_outputs

ANSWERED_AT_ONCE = 256  # test samples in one batch while answers are generated
MOST_QUESTIONS = 20  # number of different questions beyond which exact match is not reported


@runtime_checkable
class Tests(QueryBatches, Protocol):
    """Test samples of a data module, by id and as batches."""

    @property
    def test_set(self) -> SampleSet: ...


class Answer(NamedTuple):
    """Token ids of an answer, without the end token.

    Attributes:
        generated: Answer of the model.
        expected: Answer in the data.
    """

    generated: list[int]
    expected: list[int]


def outcomes(module: nn.Module, datamodule: Tests, test_ids: Sequence[int]) -> dict[int, str]:
    """Returns the predicted class or the answer for each test sample; empty for a model that gives neither."""
    if (task := _task(module, datamodule)) is not None:
        answers = task.answers(test_ids)
        return {t: task.tokenizer.decode(answer.generated) for t, answer in zip(test_ids, answers, strict=True)}
    if not states_outputs(module):
        return {}
    with torch.no_grad(), scoring(module):
        outputs = module.outputs(to_module(without_ids(datamodule.test_batch(test_ids)), module))
    if outputs.ndim != 2:
        return {}
    return {t: f"predicted {int(row.argmax())}" for t, row in zip(test_ids, outputs, strict=True)}


def exact_match(module: nn.Module, datamodule: Tests) -> dict[str, dict[str, float | int]]:
    """Returns, for each question of the test set, the share of its rows that are answered correctly to the last token.

    The most frequent question comes first. Empty for a model that generates no answers, and for more than
    `MOST_QUESTIONS` different questions.
    """
    task = _task(module, datamodule)
    if task is None:
        return {}
    ids = [int(i) for i in datamodule.test_set.ids]
    if (questions := _questions(task.rows, ids)) is None:
        return {}
    correct: dict[str, list[bool]] = {question: [] for question in sorted(set(questions))}
    for question, answer in zip(questions, task.answers(ids), strict=True):
        correct[question].append(answer.generated == answer.expected)
    by_frequency = sorted(correct.items(), key=lambda item: -len(item[1]))
    return {question: {"share": sum(each) / len(each), "rows": len(each)} for question, each in by_frequency}


@dataclass(frozen=True)
class _AnswerTask:
    """A model that generates answers, and the conversations to answer.

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
        """Yields the answers to these test samples, generated `ANSWERED_AT_ONCE` at a time."""
        end = self.tokenizer.eos
        for start in range(0, len(test_ids), ANSWERED_AT_ONCE):
            batch = self.data.test_batch(test_ids[start : start + ANSWERED_AT_ONCE])
            assert isinstance(batch, Mapping)
            with torch.no_grad(), scoring(self.module):
                rows = self.speaker.generated(to_module(batch, self.module), end)
            for ids, labels in zip(rows.tolist(), batch["labels"].tolist(), strict=True):
                first, last = _last_answer(labels)
                yield Answer(_until(ids[first:], end), _until(labels[first:last], end))


def _task(module: nn.Module, data: Tests) -> _AnswerTask | None:
    """Returns the task of answering; None if the model generates no answers or the data hold no conversations."""
    tokenizer, rows = DataNotes(data).tokenizer, data.test_set
    if tokenizer is None or not generates(module) or not isinstance(rows, ConversationSet):
        return None
    return _AnswerTask(module, module, tokenizer, data, rows)


def _questions(data: ConversationSet, ids: Sequence[int]) -> list[str] | None:
    questions: list[str] = []
    different: set[str] = set()
    for i in ids:
        questions.append(data.question(i))
        different.add(questions[-1])
        if len(different) > MOST_QUESTIONS:
            return None
    return questions


def _last_answer(labels: Sequence[int]) -> tuple[int, int]:
    """Returns start and end of the last run of labelled tokens; (0, 0) if no token is labelled."""
    last = max((at + 1 for at, label in enumerate(labels) if label >= 0), default=0)
    first = last
    while first and labels[first - 1] >= 0:
        first -= 1
    return first, last


def _until(ids: Sequence[int], end: int) -> list[int]:
    return list(ids[: ids.index(end)] if end in ids else ids)
