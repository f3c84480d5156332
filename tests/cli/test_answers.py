"""What a language model answered, and how often it was right, by question; the table of captions in any script."""

import numpy as np
import pytest
import torch
from torch import nn

from ifloo.cli import tables
from ifloo.cli.tables import width
from ifloo.data.multimodal.tokenizer import ByteTokenizer
from ifloo.stages import model_answers
from ifloo.store import StoredInfluences

TOKENS = ByteTokenizer()
LENGTH = 40
ROWS = {  # id: question, answer, what the model says
    3: ("Which digit?", "7", "7"),
    5: ("奇还是偶？", "奇数", "偶数"),
    8: ("Which digit?", "1", "17"),
    9: ("Which digit?", "四", "四"),
}


def tokens(question, answer):
    asked = [TOKENS.bos, TOKENS.user, *TOKENS.encode(question), TOKENS.assistant]
    return asked, [*TOKENS.encode(answer), TOKENS.eos]


class Rows:
    ids = torch.tensor(list(ROWS))

    def question(self, id_):
        return ROWS[id_][0]

    def answer(self, id_):
        return ROWS[id_][1]

    def caption(self, id_):
        return f"{self.question(id_)} -> {self.answer(id_)}"

    def pictures(self, id_):
        return []


class Data:
    tokenizer = TOKENS

    def __init__(self, rows=None):
        self.train_set = self.test_set = rows or Rows()

    def test_batch(self, ids):
        """An answer of an earlier turn is labelled too; it is not the one that is said again."""
        batch = {
            "input_ids": torch.full((len(ids), LENGTH), TOKENS.pad),
            "labels": torch.full((len(ids), LENGTH), -100),
            "sample_index": torch.tensor(ids),
        }
        for k, i in enumerate(ids):
            asked, said = tokens(*ROWS[i][:2])
            batch["input_ids"][k, : len(asked) + len(said)] = torch.tensor(asked + said)
            batch["labels"][k, len(asked) : len(asked) + len(said)] = torch.tensor(said)
            batch["labels"][k, 1] = TOKENS.user
        return batch


class Parrot(nn.Module):
    """Says what the table has it say."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        batches: list[int] = []
        self.seen = batches.append  # a list of the module's own would be as before after a pass
        self.recorded = lambda: batches

    def generated(self, batch, end):
        ids = batch["sample_index"].tolist()
        self.seen(len(ids))
        rows = torch.full((len(ids), LENGTH), end)
        for k, i in enumerate(ids):
            asked, said = tokens(ROWS[i][0], ROWS[i][2])
            rows[k, : len(asked) + len(said)] = torch.tensor(asked + said)
        return rows


def test_an_answer_is_what_follows_the_question():
    assert model_answers.outcomes(Parrot(), Data(), [8, 5]) == {8: "17", 5: "偶数"}


def test_a_row_without_an_answer_has_none():
    assert model_answers._last_answer([-100, -100]) == (0, 0)
    assert model_answers._last_answer([4, -100, 4, 4]) == (2, 4)


@pytest.mark.parametrize(("at_once", "batches"), [(3, [3, 1]), (256, [4])])
def test_right_is_right_to_the_last_token(at_once, batches, monkeypatch):
    monkeypatch.setattr(model_answers, "ANSWERED_AT_ONCE", at_once)
    model = Parrot()
    found = model_answers.exact_match(model, Data())
    assert list(found.items()) == [
        ("Which digit?", {"share": 2 / 3, "rows": 3}),
        ("奇还是偶？", {"share": 0.0, "rows": 1}),
    ]
    assert model.recorded() == batches


def test_it_is_told_by_question(capsys):
    tables.exact_match(model_answers.exact_match(Parrot(), Data()))
    assert capsys.readouterr().out == (
        "exact match of the test answers, by question\n  0.67     3 rows  Which digit?\n  0.00     1 rows  奇还是偶？\n"
    )
    tables.exact_match({})
    assert capsys.readouterr().out == ""


def test_where_every_row_asks_something_else_nothing_is_told(monkeypatch):
    class Many(Rows):
        ids = torch.arange(21)

        def question(self, id_):
            return f"question {id_}"

    assert model_answers.exact_match(Parrot(), Data(Many())) == {}


def test_other_models_and_other_data_have_no_answers():
    class Images:
        test_set = Rows()

    assert model_answers.exact_match(nn.Linear(1, 1), Data()) == {}
    assert model_answers.exact_match(Parrot(), Images()) == {}
    assert model_answers.outcomes(nn.Linear(1, 1), Data(), [3]) == {}


def influences(scores, **others):
    fields = {
        "test_id": 5,
        "scores": np.asarray(scores, np.float32),
        "train_ids": np.array(list(ROWS)),
        "score_mean": 0.0,
        "residual": 2e-13,
        "undamped_residual": None,
        "error_bound": None,
        "steps": 500,
        "status": "REPLAYED",
        "damping": 0.0,
        "method": "unrolled",
        "definitions": "",
        "settings": "",
    }
    return StoredInfluences(**{**fields, **others})


def test_captions_in_any_script_stand_in_columns(capsys):
    tables.influence(influences([-0.5, 0.25, 1e-3, -2.0]), Data())
    title, above, head, *lines, certificate = capsys.readouterr().out.splitlines()[1:]
    assert title == "test 5 (row 奇还是偶？ -> 奇数): influence in nats per unit weight"
    places = [width(head[: head.index("score")]), width(head[: head.rindex("score")])]
    for line in lines:
        signs = [k for k in range(len(line)) if line[k] in "+-" and line[k + 1].isdigit() and line[k - 1] == " "]
        assert [width(line[:k]) for k in signs] == places
        assert width(line.rstrip()) <= 100
    assert width(above[: above.index("most harmful")]) == width(head[: head.rindex("    id")])
    assert lines[0].startswith("       9  Which digit? -> 四  -2.0000e+00       5  奇还是偶？ -> 奇数  +2.5000e-01")
    assert certificate == (
        "  certificate: replayed the recorded run, its weights met within 2.0e-13 of their size (500 steps)"
    )


def test_long_captions_are_cut_to_a_hundred_columns(capsys):
    class Long(Rows):
        def caption(self, id_):
            return "这张图片里有什么东西，请仔细描述 -> " + ROWS[id_][1]

    tables.influence(influences([-0.5, 0.25, 1e-3, -2.0]), Data(Long()))
    lines = capsys.readouterr().out.splitlines()[4:-1]
    assert max(width(line.rstrip()) for line in lines) in range(95, 101)
    assert "张图片里有…仔细描述 -> 四  " in lines[0]
