"""Tokenizers: bytes of any language, special ids that no text can name, and the wrapper around transformers."""

import hashlib
import pickle
import sys
from types import ModuleType

import pytest

from ifloo.data import ByteTokenizer, HuggingFaceTokenizer
from ifloo.data.multimodal.tokenizer import SPECIALS
from ifloo.errors import InputError


@pytest.mark.parametrize("text", ["", "a cat", "一只猫 🐈", "<image></s>\x00\r\n", "e\u0301"])
def test_bytes_come_back(text: str):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode([tokenizer.bos, *ids, -100, tokenizer.eos, tokenizer.pad]) == text


def test_half_a_character_is_shown_as_such():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("猫")[:2]) == "�"


def test_special_ids_follow_the_text():
    tokenizer = ByteTokenizer()
    assert [getattr(tokenizer, name) for name in SPECIALS] == list(range(256, 263))
    assert (tokenizer.vocab_size, tokenizer.description()) == (263, "utf-8 bytes")


class Words:
    """As a tokenizer of transformers, with a vocabulary of three words."""

    known = ("a", "cat", "[UNK]")
    loaded: tuple[str, bool] | None = None

    @classmethod
    def from_pretrained(cls, name: str, trust_remote_code: bool) -> "Words":
        if name == "nowhere":
            raise OSError("nowhere is not a folder.\nIf this is private, log in.")
        cls.loaded = (name, trust_remote_code)
        return cls()

    def __len__(self) -> int:
        return len(self.known)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [self.known.index(word if word in self.known else "[UNK]") for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.known[i] for i in ids)

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.known)}


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("transformers")
    module.AutoTokenizer = Words  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)


@pytest.mark.usefixtures("transformers")
def test_a_published_tokenizer():
    tokenizer = HuggingFaceTokenizer("some/model")
    assert Words.loaded == ("some/model", False)  # code that comes with a model is never run
    assert tokenizer.encode("a blue cat") == [0, 2, 1]
    assert tokenizer.decode([tokenizer.user, 0, 1, -100, tokenizer.eos]) == "a cat"
    assert (tokenizer.pad, tokenizer.image, tokenizer.vocab_size) == (3, 9, 10)
    elsewhere = HuggingFaceTokenizer("/a/folder")
    vocabulary = hashlib.sha256(b'[["[UNK]", 2], ["a", 0], ["cat", 1]]').hexdigest()
    assert tokenizer.description() == elsewhere.description() == f"Words, vocabulary {vocabulary}"
    assert pickle.loads(pickle.dumps(tokenizer)).encode("cat") == [1]


@pytest.mark.usefixtures("transformers")
def test_a_published_tokenizer_that_is_not_there():
    with pytest.raises(InputError) as caught:
        HuggingFaceTokenizer("nowhere")
    assert str(caught.value) == (
        "HuggingFaceTokenizer 'nowhere': expected a tokenizer that transformers can load, found: nowhere is not a "
        "folder.\n  Check the name, or give the folder it lies in."
    )


def test_without_transformers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError) as caught:
        HuggingFaceTokenizer("some/model")
    assert str(caught.value) == (
        "HuggingFaceTokenizer 'some/model' needs the package transformers, which cannot be imported (import of "
        "transformers halted; None in sys.modules).\n  Install it (pip install transformers), or leave tokenizer out: "
        "the default takes the bytes of the text."
    )
