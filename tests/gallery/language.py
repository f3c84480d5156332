"""Transformers of Hugging Face from a configuration, with padding masks: a text classifier and a language model."""

from typing import Any

import lightning as L
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import BatchEncoding, BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

WORDS, PAD = 20, 0


class Texts(Dataset[Any]):
    """Sentences of 3 to 7 words, with a label."""

    def __init__(self, n: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 8, (n,), generator=draw)
        self.words = [torch.randint(1, WORDS, (int(k),), generator=draw) for k in lengths]

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, i: int) -> Any:
        return {"input_ids": self.words[i], "labels": int(self.words[i].float().mean() > WORDS / 2)}


def padded(samples: Any) -> BatchEncoding:
    """Pads sentences to the longest of their batch, as a tokenizer does."""
    tokens = torch.nn.utils.rnn.pad_sequence([one["input_ids"] for one in samples], batch_first=True)
    labels = torch.tensor([one["labels"] for one in samples])
    return BatchEncoding({"input_ids": tokens, "attention_mask": (tokens != PAD).long(), "labels": labels})


def as_language(samples: Any) -> BatchEncoding:
    """Pads sentences and takes their own words as labels, −100 where a batch is padded."""
    batch = padded(samples)
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == PAD, -100)
    return batch


class Data(L.LightningDataModule):
    collate = staticmethod(padded)
    batch_size = 8

    def train_dataloader(self) -> Any:
        return DataLoader(Texts(24, 0), batch_size=self.batch_size, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> Any:
        return DataLoader(Texts(4, 1), batch_size=4, collate_fn=self.collate)


class LanguageData(Data):
    collate = staticmethod(as_language)
    batch_size = 24


class Bert(L.LightningModule):
    """Fine-tunes a classifier; `lora` trains adapters and the head alone."""

    def __init__(self, lora: bool = False, learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = get_peft_model(self.pretrained(), self.adapters()) if lora else self.pretrained()

    def pretrained(self) -> Any:
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=10,
            num_labels=2,
        )
        return BertForSequenceClassification(config)

    def adapters(self) -> LoraConfig:
        return LoraConfig(
            r=2, lora_alpha=4, target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS"
        )

    def forward(self, **inputs: Tensor) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self(**batch).loss
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self(**batch)["loss"])

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.hparams.learning_rate, weight_decay=0.0)  # type: ignore[attr-defined]


class Gpt2(Bert):
    """Trains a language model; its loss is the mean over the words of a batch that are no padding."""

    def pretrained(self) -> Any:
        config = GPT2Config(
            vocab_size=WORDS, n_positions=10, n_embd=8, n_layer=1, n_head=2, n_inner=12, bos_token_id=1, eos_token_id=1
        )
        return GPT2LMHeadModel(config)

    def adapters(self) -> LoraConfig:
        return LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
