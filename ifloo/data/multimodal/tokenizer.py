"""Tokenizers: text to token ids and back; the special ids of a conversation follow the ids of the text."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable

from ifloo.errors import InputError

SPECIALS = ("pad", "bos", "eos", "user", "assistant", "system", "image")


class Tokenizer(ABC):
    """Base class of tokenizers: text ids 0..text_size-1, then the special ids in the order of `SPECIALS`.

    No text encodes to a special id, so that no row can imitate the end of an answer or an image.

    Attributes:
        text_size: Number of text ids.
        vocab_size: Number of all ids, including the special ones.
        pad: Id that fills rows up to the common length.
        bos: Id that begins a row.
        eos: Id that ends an answer.
        user: Id that begins a turn of the user.
        assistant: Id that begins an answer.
        system: Id that begins a turn of the system.
        image: Id of an image token.
    """

    def __init__(self, text_size: int) -> None:
        self.text_size = text_size
        self.vocab_size = text_size + len(SPECIALS)
        self.pad, self.bos, self.eos, self.user, self.assistant, self.system, self.image = range(
            text_size, self.vocab_size
        )

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Encodes a text as ids, without any special id."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Decodes ids to text; special ids and ignored labels (-100) are left out."""

    @abstractmethod
    def description(self) -> str:
        """Returns a text that identifies the mapping from text to ids, the same on every machine and in every run."""


class ByteTokenizer(Tokenizer):
    """Tokenizer whose tokens are the bytes of UTF-8: it needs no vocabulary file and covers every language."""

    def __init__(self) -> None:
        super().__init__(256)

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if 0 <= i < self.text_size).decode("utf-8", errors="replace")

    def description(self) -> str:
        return "utf-8 bytes"


class HuggingFaceTokenizer(Tokenizer):
    """The tokenizer of a published model, through the package transformers.

    Args:
        name_or_path: Name on the hub, or a folder; code that comes with the tokenizer is not run.

    Raises:
        InputError: If transformers is not installed, or the tokenizer does not exist.
    """

    def __init__(self, name_or_path: str) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise InputError(
                f"HuggingFaceTokenizer {name_or_path!r} needs the package transformers, which cannot be imported "
                f"({error}).\n  Install it (pip install transformers), or leave tokenizer out: the default takes the "
                "bytes of the text."
            ) from error
        try:
            self._wrapped = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise InputError(
                f"HuggingFaceTokenizer {name_or_path!r}: expected a tokenizer that transformers can load, found: "
                f"{reason}.\n  Check the name, or give the folder it lies in."
            ) from error
        super().__init__(len(self._wrapped))

    def encode(self, text: str) -> list[int]:
        return list(self._wrapped.encode(text, add_special_tokens=False))

    def decode(self, ids: Iterable[int]) -> str:
        text = self._wrapped.decode([i for i in ids if 0 <= i < self.text_size])
        return text if isinstance(text, str) else "".join(text)

    def description(self) -> str:
        """Returns class and SHA-256 of the vocabulary, but not the name, which may be a path."""
        vocabulary = json.dumps(sorted(self._wrapped.get_vocab().items()))
        return f"{type(self._wrapped).__name__}, vocabulary {hashlib.sha256(vocabulary.encode()).hexdigest()}"
