"""Data modules: where the samples come from, each with an id that no limit, shuffle or batch size changes."""

from ifloo.data.adapted import AdaptedData, Samples, data_as_written, serves_attribution
from ifloo.data.digits import DigitSet
from ifloo.data.mnist import MNISTDataModule
from ifloo.data.multimodal import ByteTokenizer, HuggingFaceTokenizer, MultimodalDataModule, MultimodalSet, Tokenizer

__all__ = [
    "AdaptedData",
    "ByteTokenizer",
    "DigitSet",
    "HuggingFaceTokenizer",
    "MNISTDataModule",
    "MultimodalDataModule",
    "MultimodalSet",
    "Samples",
    "Tokenizer",
    "data_as_written",
    "serves_attribution",
]
