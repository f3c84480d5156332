"""Parser of one line of a jsonl file: a conversation about images, or the reason why the line is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

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
SEVERAL = "images"  # common key in place of `image`
IMAGE_KEY = re.compile(r"image|img|picture|photo", re.IGNORECASE)
IMAGE_FILE = re.compile(r"\.(png|jpe?g|webp|bmp|gif|tiff?|ppm)$", re.IGNORECASE)
# Keys under which the part of a content of type image or image_url holds the path; it may also hold none.
PART_PATHS = ("image", "path", "url", "image_url")


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
    """A turn of a conversation.

    Attributes:
        role: Speaker.
        text: Text, in which `<image>` stands for an image.
        images: File names of images that are written in the turn itself, as parts of its content.
    """

    role: Role
    text: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A conversation; the k-th `<image>` in its turns stands for the k-th of its images.

    Attributes:
        turns: Turns of the conversation; at least one is the assistant's, and those are not empty and hold no marker.
        images: File names of the images, as written in the data.
        unread: Keys of images that no field names.
    """

    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    unread: tuple[str, ...] = ()

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
    key = _image_key(data, names["image"])
    turns, images = _turns(data, names), _images(data, key)
    if not any(turn.role == "assistant" for turn in turns):
        raise BadRowError("expected a turn of the assistant (gpt or assistant), found none")
    if within := tuple(image for turn in turns for image in turn.images):
        if images:
            raise BadRowError(f"expected images in {key} or in the parts of a turn, found both")
        images = within
    return Row(_with_markers(turns, len(images)), images, _unread(data, {*names.values(), key}))


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


def _image_key(data: Mapping[str, object], key: str) -> str:
    """Returns the key of the images: `images` in place of `image` is as common, and understood.

    Raises:
        BadRowError: If the row has both.
    """
    if key != "image" or SEVERAL not in data:
        return key
    if key in data:
        raise BadRowError(f"expected a key {key} or {SEVERAL}, found both", RENAME)
    return SEVERAL


def _unread(data: Mapping[str, object], read: set[str]) -> tuple[str, ...]:
    """Lists the keys that are not read though their names, or the paths they hold, are those of images."""
    return tuple(key for key, value in data.items() if key not in read and _speaks_of_images(key, value))


def _speaks_of_images(key: str, value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    if IMAGE_KEY.search(key):
        return any(isinstance(one, (str, dict)) and bool(one) for one in values)  # not its size, nor null
    return bool(values) and all(isinstance(one, str) and IMAGE_FILE.search(one) for one in values)


def _turn(turn: object, speaker: str, text: str, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise BadRowError(f"{where}: expected an object {{...}}, found {_kind(turn)}")
    for key in (speaker, text):
        if key not in turn:
            raise BadRowError(f"{where}: expected a key {key}, found none", RENAME)
        if not isinstance(turn[key], str) and not (key == text and _is_parts(turn[key])):
            raise BadRowError(f"{where}.{key}: expected text, found {_kind(turn[key])}")
    if turn[speaker] not in ROLES:
        raise BadRowError(f"{where}.{speaker}: expected one of {', '.join(ROLES)}, found {_shown(turn[speaker])}")
    role = ROLES[turn[speaker]]
    content, images = _joined_parts(turn[text], f"{where}.{text}")
    if role == "assistant" and not content.strip():
        raise BadRowError(f"{where}.{text}: expected an answer, found an empty one")
    return Turn(role, _checked_unicode(content, f"{where}.{text}"), images)


def _is_parts(content: object) -> TypeGuard[list[dict[str, object]]]:
    """Whether a content is a list of parts, [{"type": "image"}, {"type": "text", "text": ...}], as chats have it."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content)
    )


def _joined_parts(content: str | list[dict[str, object]], where: str) -> tuple[str, tuple[str, ...]]:
    """Returns the text of a content with a marker for each image, and the paths that its image parts hold.

    Raises:
        BadRowError: If a part is neither a text nor an image.
    """
    if isinstance(content, str):
        return content, ()
    texts, images = [], []
    for i, part in enumerate(content):
        if part["type"] == "text":
            if not isinstance(text := part.get("text"), str):
                raise BadRowError(f"{where}[{i}].text: expected text, found {_kind(text)}")
            texts.append(text)
        elif part["type"] in ("image", "image_url"):
            texts.append(MARKER)
            images += [_part_path(part[key], f"{where}[{i}].{key}") for key in PART_PATHS if part.get(key) is not None]
        else:
            raise BadRowError(f"{where}[{i}].type: expected text or image, found {_shown(str(part['type']))}")
    return "".join(texts), tuple(images)


def _part_path(value: object, where: str) -> str:
    path = value.get("url") if isinstance(value, dict) else value  # {"image_url": {"url": path}}
    if not isinstance(path, str) or not path:
        raise BadRowError(f"{where}: expected a path, found {_kind(path) if path != '' else 'an empty one'}")
    return _checked_unicode(path, where)


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
