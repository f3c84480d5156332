"""Data modules and data sets; every sample has an id that does not depend on limits, shuffling or the batch size."""

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
