"""Image-text data: jsonl conversations with image files, as tokens and pixels for a small multimodal language model."""

from ifloo.data.multimodal.dataset import MultimodalSet
from ifloo.data.multimodal.module import MultimodalDataModule
from ifloo.data.multimodal.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer

__all__ = ["ByteTokenizer", "HuggingFaceTokenizer", "MultimodalDataModule", "MultimodalSet", "Tokenizer"]
