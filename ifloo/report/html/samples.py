"""Cache of the samples that the page shows, with their texts and thumbnails; each sample is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ifloo.data.protocol import CaptionedSet, ConversationSet
from ifloo.report.figures.conversation_gallery import pictures_of
from ifloo.report.html.thumbnails import thumbnail
from ifloo.report.safe_text import short
from ifloo.store import JSON

MOST_BYTES = 4 << 20  # largest size of all thumbnails together, so that a page can be sent by mail
PICTURES = 4  # images shown per sample; of further ones only the number is shown
_TEXT = 480  # largest length of a question or an answer, characters
_CAPTION = 140  # largest length of a caption beside a point, characters


@dataclass(frozen=True)
class Sample:
    """A sample as the page shows it.

    Attributes:
        id: Id of the sample.
        caption: Description in one short line.
        pictures: Thumbnails as data URIs.
        hidden: Number of further images.
        question: Question to the model; empty if the sample is not a conversation.
        answer: Correct answer; empty if the sample is not a conversation.
    """

    id: int
    caption: str
    pictures: tuple[str, ...]
    hidden: int = 0
    question: str = ""
    answer: str = ""


@dataclass
class SampleCache:
    """Samples of a page by key, within a limit on the size of their thumbnails.

    Attributes:
        train: Training set, with `picture(id)` and `caption(id)` or a `ConversationSet`.
        test: Test set, of the same kind.
        most_bytes: Largest size of all thumbnails together; samples added beyond it have none.
        samples: Samples added so far; key `8` for the training set, `test 8` for the test set.
        left_out: Number of samples without thumbnails because of the limit.
    """

    train: CaptionedSet | ConversationSet
    test: CaptionedSet | ConversationSet
    most_bytes: int = MOST_BYTES
    samples: dict[str, Sample] = field(default_factory=dict)
    left_out: int = 0
    _bytes: int = 0

    def of_training(self, id_: int, pictures: int = PICTURES) -> Sample:
        """Returns a training sample with at most `pictures` images; the first call for an id determines the number.

        Raises:
            InputError: If the page cannot show an image.
        """
        return self._shown(str(id_), self.train, id_, pictures, f"training sample {id_}")

    def of_test(self, id_: int) -> Sample:
        """Returns a test sample; raises the same errors as `of_training`."""
        return self._shown(f"test {id_}", self.test, id_, PICTURES, f"test sample {id_}")

    def to_json(self) -> dict[str, JSON]:
        """Returns captions and thumbnails by key, for the script of the page."""
        return {
            key: {"caption": short(one.caption, _CAPTION), "pictures": list(one.pictures)}
            for key, one in self.samples.items()
        }

    def _shown(self, key: str, data: CaptionedSet | ConversationSet, id_: int, most: int, name: str) -> Sample:
        if key not in self.samples:
            images = pictures_of(data, id_)
            uris = self._fitting([thumbnail(image, name) for image in images[:most]])
            question, answer = _texts_of(data, id_)
            caption = _one_line(question, answer) if isinstance(data, ConversationSet) else str(data.caption(id_))
            hidden = len(images) - len(uris)
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
