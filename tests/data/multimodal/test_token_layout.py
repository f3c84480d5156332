"""Where the tokens of a row go, which of them are learned, and what a row that is too long loses."""

from typing import Any

import pytest

from ifloo.data.multimodal.row import BadRowError, Row, field_names, parse_row
from ifloo.data.multimodal.token_layout import NO_LOSS, lay_out
from ifloo.data.multimodal.tokenizer import ByteTokenizer, Tokenizer
from tests.data.multimodal.rows import ASSISTANT, BOS, EOS, IMAGE, SYSTEM, USER, as_bytes, conversation

BYTES = ByteTokenizer()
MARKS = {BOS: "^", EOS: "$", USER: "U", ASSISTANT: "A", SYSTEM: "S", IMAGE: "#"}


def row(data: dict[str, Any]) -> Row:
    return parse_row(as_bytes(data), field_names(None))


def drawn(data: dict[str, Any], max_seq_len: int = 1000, num_image_tokens: int = 2) -> tuple[str, str, bool]:
    """Tokens and labels with one sign each; no loss is a dot."""
    laid = lay_out(row(data), BYTES, num_image_tokens, max_seq_len)
    tokens = "".join(MARKS.get(i) or chr(i) for i in laid.input_ids)
    return tokens, "".join("." if i == NO_LOSS else MARKS.get(i) or chr(i) for i in laid.labels), laid.cut


def test_one_question():
    assert drawn(conversation("<image>is it?", "no", image="a")) == ("^U##is it?Ano$", "...........no$", False)


def test_every_answer_is_learned():
    assert drawn(conversation("a", "bc", "d", "e")) == ("^UaAbc$UdAe$", "....bc$...e$", False)


def test_the_chat_form_with_a_system_turn():
    roles = ("system", "user", "assistant")
    data = {"messages": [{"role": role, "content": role[:2]} for role in roles]}
    assert drawn(data) == ("^SsyUusAas$", "........as$", False)


@pytest.mark.parametrize(
    ("texts", "images", "tokens"),
    [
        (("x<image>y<image>", "z"), 2, "^Ux##y##Az$"),
        (("a", "b", "c<image>", "d"), 1, "^UaAb$Uc##Ad$"),
        (("ab", "c"), 1, "^U##abAc$"),  # no marker: at the start of the first question
        (("ab", "c", "d", "e"), 2, "^U####abAc$UdAe$"),
    ],
)
def test_images_stand_where_the_text_says(texts: tuple[str, ...], images: int, tokens: str):
    assert drawn(conversation(*texts, image=["i"] * images))[0] == tokens


def test_text_is_utf8():
    laid = lay_out(row(conversation("猫", "🐈")), BYTES, 1, 100)
    assert laid.input_ids == [BOS, USER, *"猫".encode(), ASSISTANT, *"🐈".encode(), EOS]


TWO = conversation("<image>abcd", "ef", "ghij", "klmn", image="i")


@pytest.mark.parametrize(
    ("max_seq_len", "tokens", "labels"),
    [
        (24, "^U##abcdAef$UghijAklmn$", ".........ef$......klmn$"),
        (20, "^U##dAef$UghijAklmn$", "......ef$......klmn$"),
        (19, "^U##Aef$UghijAklmn$", ".....ef$......klmn$"),
        (17, "^U##Aef$UijAklmn$", ".....ef$....klmn$"),
        (15, "^U##Aef$UAklmn$", ".....ef$..klmn$"),
        (14, "^U##Af$UAklmn$", ".........klmn$"),  # an answer without its beginning is not learned
        (13, "^U##A$UAklmn$", "........klmn$"),
        (12, "^U##A$UAklmn", "........klmn"),  # nor is an end that is not one
        (9, "^U##A$UAk", "........k"),
    ],
)
def test_what_is_cut_and_in_which_order(max_seq_len: int, tokens: str, labels: str):
    assert len(tokens) == min(max_seq_len, 23)
    assert drawn(TWO, max_seq_len) == (tokens, labels, max_seq_len < 23)


def test_system_text_goes_after_the_questions():
    data = {"messages": [{"role": r, "content": "abc"} for r in ("system", "user", "assistant")]}
    assert [drawn(data, n)[0] for n in (10, 9, 8)] == ["^SbcUAabc$", "^ScUAabc$", "^SUAabc$"]


def test_what_may_not_be_cut_must_fit():
    with pytest.raises(BadRowError) as caught:
        drawn(TWO, 8)
    assert (caught.value.reason, caught.value.step) == (
        "expected a row that fits into max_seq_len 8, found 9 tokens that cannot be cut, 2 of them for images",
        "Raise max_seq_len to 9 or more, or lower num_image_tokens",
    )


class Deaf(Tokenizer):
    def __init__(self) -> None:
        super().__init__(0)

    def encode(self, text: str) -> list[int]:
        return []

    def decode(self, ids: object) -> str:
        return ""

    def description(self) -> str:
        return "nothing"


def test_an_answer_the_tokenizer_has_no_token_for():
    with pytest.raises(BadRowError, match=r"^turn 2: expected an answer, found one without a token$"):
        lay_out(row(conversation("a", "b")), Deaf(), 1, 10)


def test_question_and_answer():
    data = conversation("first <image>", "one", "<image>\n second?", "two", "and then?", image=["a", "b"])
    assert (row(data).question, row(data).answer) == ("second?", "two")
    assert row({"messages": [{"role": "assistant", "content": "alone"}]}).question == ""
