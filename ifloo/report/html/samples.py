"""The samples that the page shows, each read once: what they are in words, and their thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ifloo.data.protocol import CaptionedSet, ConversationSet
from ifloo.report.gallery import pictures_of
from ifloo.report.html.thumbnails import thumbnail
from ifloo.report.plain import short
from ifloo.store import JSON

MOST_BYTES = 4 << 20  # of all thumbnails together, so that a page stays one that can be mailed
PICTURES = 4  # of one sample; more are counted, not shown
_TEXT = 480  # characters of a question or an answer
_CAPTION = 140  # characters beside a point


@dataclass(frozen=True)
class Sample:
    """A sample as the page shows it.

    Attributes:
        id: of the sample.
        caption: what it is, in one short line.
        pictures: data URIs.
        hidden: pictures it has beyond those.
        question: what the model is asked; empty for a sample that is no conversation, as is `answer`.
        answer: what it should answer.
    """

    id: int
    caption: str
    pictures: tuple[str, ...]
    hidden: int = 0
    question: str = ""
    answer: str = ""


@dataclass
class Album:
    """The samples of a page by key, and how much room their thumbnails have taken.

    Attributes:
        train: the training set.
        test: the test set; each with `picture(id)` and `caption(id)` or as a `ConversationSet`.
        most_bytes: of all thumbnails together; samples that come later have none.
        samples: those shown so far: `8` of the training set, `test 8` of the test set.
        left_out: samples whose thumbnails found no room.
    """

    train: CaptionedSet | ConversationSet
    test: CaptionedSet | ConversationSet
    most_bytes: int = MOST_BYTES
    samples: dict[str, Sample] = field(default_factory=dict)
    left_out: int = 0
    _bytes: int = 0

    def of_training(self, id_: int, pictures: int = PICTURES) -> Sample:
        """A training sample with up to so many pictures; the first call for an id decides how many.

        Raises:
            InputError: a picture is none the page can show.
        """
        return self._shown(str(id_), self.train, id_, pictures, f"training sample {id_}")

    def of_test(self, id_: int) -> Sample:
        """A test sample; errors as those of `of_training`."""
        return self._shown(f"test {id_}", self.test, id_, PICTURES, f"test sample {id_}")

    def to_json(self) -> dict[str, JSON]:
        """What the script of the page needs of them."""
        return {
            key: {"caption": short(one.caption, _CAPTION), "pictures": list(one.pictures)}
            for key, one in self.samples.items()
        }

    def _shown(self, key: str, data: CaptionedSet | ConversationSet, id_: int, most: int, name: str) -> Sample:
        if key not in self.samples:
            there = pictures_of(data, id_)
            uris = self._fitting([thumbnail(picture, name) for picture in there[:most]])
            question, answer = _texts_of(data, id_)
            caption = _one_line(question, answer) if isinstance(data, ConversationSet) else str(data.caption(id_))
            hidden = len(there) - len(uris)
            self.samples[key] = Sample(id_, caption, uris, hidden, short(question, _TEXT), short(answer, _TEXT))
        return self.samples[key]

    def _fitting(self, uris: Sequence[str]) -> tuple[str, ...]:
        size = sum(map(len, uris))
        if self._bytes + size > self.most_bytes:
            self.left_out += 1
            return ()
        self._bytes += size
        return tuple(uris)


def _texts_of(data: CaptionedSet | ConversationSet, id_: int) -> tuple[str, str]:
    return (data.question(id_), data.answer(id_)) if isinstance(data, ConversationSet) else ("", "")


def _one_line(question: str, answer: str) -> str:
    return " ".join(f"{short(question, _CAPTION - 40)} → {short(answer, 40)}".split())
