import pytest

from ifloo.cli.tables import cut, padded, width


@pytest.mark.parametrize(
    ("text", "columns"), [("", 0), ("abc", 3), ("数字？", 6), ("e\u0301", 1), ("ｶﾅ", 2), ("→ 8", 3)]
)
def test_a_chinese_character_takes_two_columns(text, columns):
    assert width(text) == columns
    assert padded(text, columns + 2) == text + "  "


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("Which is larger? -> left", 24, "Which is larger? -> left"),
        ("Which is larger? -> left", 17, "Which is…-> left"),
        ("这是哪个数字？ -> 零", 13, "这是哪…-> 零"),
        ("这是哪个数字？", 6, "这…？"),
        ("abc", 1, "…"),
    ],
)
def test_what_is_too_wide_keeps_its_two_ends(text, columns, expected):
    assert cut(text, columns) == expected
    assert width(expected) <= columns
