"""Parser of one line of a jsonl file: a conversation about images, or the reason why the line is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ifloo.errors import InputError

Role = Literal["user", "assistant", "system"]
ROLES: dict[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}
MARKER = "<image>"
# Keys of (list of turns, speaker, text): the format of LLaVA, and the format of chats.
FORMS = (("conversations", "from", "value"), ("messages", "role", "content"))
FIELDS = ("image", *FORMS[0], *FORMS[1])
RENAME = "Correct the row, or name its keys by fields"


class BadRowError(Exception):
    """A row that cannot be used.

    Attributes:
        reason: Expected and actual content, without file and line.
        step: Next step for the user.
    """

    def __init__(self, reason: str, step: str = "Correct the row") -> None:
        super().__init__(reason)
        self.reason, self.step = reason, step


@dataclass(frozen=True)
class Turn:
    role: Role
    text: str


@dataclass(frozen=True)
class Row:
    """A conversation; the k-th `<image>` in its turns stands for the k-th of its images.

    Attributes:
        turns: Turns of the conversation; at least one is the assistant's, and those are not empty and hold no marker.
        images: File names of the images, as written in the data.
    """

    turns: tuple[Turn, ...]
    images: tuple[str, ...]

    @property
    def last_answer(self) -> int:
        """Position of the last turn of the assistant."""
        return max(i for i, turn in enumerate(self.turns) if turn.role == "assistant")

    @property
    def answer(self) -> str:
        return self.turns[self.last_answer].text

    @property
    def question(self) -> str:
        """Last text of the user before the last answer, without image markers; empty if the user has no such turn."""
        questions = [turn.text for turn in self.turns[: self.last_answer] if turn.role == "user"]
        return questions[-1].replace(MARKER, "").strip() if questions else ""


def field_names(given: Mapping[str, str] | None) -> dict[str, str]:
    """Returns the key of each field in the data: the field's own name unless another is given.

    Raises:
        InputError: If a field does not exist.
    """
    given = given or {}
    if unknown := sorted(given.keys() - set(FIELDS)):
        raise InputError(
            f"fields: expected names for some of {', '.join(FIELDS)}, found {', '.join(map(repr, unknown))}.\n"
            "  Write the name above on the left and that of your data on the right, as in {image: img}."
        )
    return {name: given.get(name, name) for name in FIELDS}


def parse_row(line: bytes, names: Mapping[str, str]) -> Row:
    """Parses a line of JSON as a conversation.

    Args:
        line: Bytes of the line, UTF-8.
        names: Key of each field, as returned by `field_names`.

    Raises:
        BadRowError: If the line does not hold a conversation.
    """
    data = _object(line)
    turns, images = _turns(data, names), _images(data, names["image"])
    if not any(turn.role == "assistant" for turn in turns):
        raise BadRowError("expected a turn of the assistant (gpt or assistant), found none")
    return Row(_with_markers(turns, len(images)), images)


def _object(line: bytes) -> dict[str, object]:
    try:
        data = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = f"0x{line[error.start]:02x} (byte {error.start + 1} of the line)"
        raise BadRowError(f"expected UTF-8, found {byte}") from error
    except json.JSONDecodeError as error:
        raise BadRowError(f"expected JSON, found: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets a thousand deep
        raise BadRowError(f"expected JSON, found: {error}") from error
    if not isinstance(data, dict):
        raise BadRowError(f"expected an object {{...}}, found {_kind(data)}")
    return data


def _turns(data: dict[str, object], names: Mapping[str, str]) -> tuple[Turn, ...]:
    forms = [form for form in FORMS if names[form[0]] in data]
    either = " or ".join(names[form[0]] for form in FORMS)
    if len(forms) != 1:
        found = "both" if forms else f"the keys {', '.join(map(_shown, data))}" if data else "no key"
        raise BadRowError(f"expected a key {either}, found {found}", RENAME)
    key, speaker, text = (names[name] for name in forms[0])
    turns = data[key]
    if not isinstance(turns, list):
        raise BadRowError(f"{key}: expected a list of turns, found {_kind(turns)}")
    return tuple(_turn(turn, speaker, text, f"{key}[{i}]") for i, turn in enumerate(turns))


def _turn(turn: object, speaker: str, text: str, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise BadRowError(f"{where}: expected an object {{...}}, found {_kind(turn)}")
    for key in (speaker, text):
        if key not in turn:
            raise BadRowError(f"{where}: expected a key {key}, found none", RENAME)
        if not isinstance(turn[key], str):
            raise BadRowError(f"{where}.{key}: expected text, found {_kind(turn[key])}")
    if turn[speaker] not in ROLES:
        raise BadRowError(f"{where}.{speaker}: expected one of {', '.join(ROLES)}, found {_shown(turn[speaker])}")
    role, content = ROLES[turn[speaker]], turn[text]
    if role == "assistant" and not content.strip():
        raise BadRowError(f"{where}.{text}: expected an answer, found an empty one")
    return Turn(role, _checked_unicode(content, f"{where}.{text}"))


def _images(data: dict[str, object], key: str) -> tuple[str, ...]:
    given = data.get(key)
    images: list[object] = [] if given is None else given if isinstance(given, list) else [given]
    paths = []
    for image in images:
        if not isinstance(image, str):
            found = f"a list with {_kind(image)}" if isinstance(given, list) else _kind(image)
            raise BadRowError(f"{key}: expected a path or a list of paths, found {found}")
        if not image:
            raise BadRowError(f"{key}: expected a path, found an empty one")
        paths.append(image)
    return tuple(_checked_unicode(path, key) for path in paths)


def _with_markers(turns: tuple[Turn, ...], images: int) -> tuple[Turn, ...]:
    """Returns the turns with one marker per image, adding markers to the first user turn if the row has none.

    Raises:
        BadRowError: If markers and images do not match, or an answer contains a marker.
    """
    if any(MARKER in turn.text for turn in turns if turn.role == "assistant"):
        raise BadRowError(f"expected {MARKER} in questions only, found it in an answer")
    markers = sum(turn.text.count(MARKER) for turn in turns)
    if markers == images:
        return turns
    if markers:
        raise BadRowError(
            f"expected one {MARKER} per image, found {_count(markers, 'marker')} and {_count(images, 'image')}"
        )
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        raise BadRowError(f"expected a turn of the user to show {_count(images, 'image')} in, found none")
    shown = replace(turns[first], text=MARKER * images + turns[first].text)
    return (*turns[:first], shown, *turns[first + 1 :])


def _checked_unicode(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise BadRowError(f"{where}: expected Unicode text, found half of a surrogate pair, {half}") from error
    return text


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _shown(text: str) -> str:
    """Returns a shortened Python literal of a text, so that control characters in the data cannot act on a terminal."""
    return repr(text) if len(text) <= 30 else repr(text[:30]) + "..."


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
