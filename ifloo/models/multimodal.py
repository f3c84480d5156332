"""A small language model that reads images: image tokens where `<image>` stands, byte tokens around them."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ifloo.errors import InputError
from ifloo.models.module import SampleLossModule
from ifloo.models.transformer import PatchEmbedding, Transformer
from ifloo.objective.batches import Batch

IGNORED = -100  # label of a token that no loss is taken of


class MultimodalLM(SampleLossModule):
    """ℓ_i = mean cross-entropy of the answer's tokens, nats; R = ½ λ ‖θ‖² over all trained weights.

    Understands dict batches `{"input_ids" [b, s], "labels" [b, s], "attention_mask" [b, s], "pixel_values"
    [b, m, c, h, w], "sample_index" [b]}`; the k-th group of `num_image_tokens` image ids in a row stands for its k-th
    image.
    """

    def __init__(
        self,
        vocab_size: int = 263,
        image_token_id: int = 262,
        embed_dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        max_seq_len: int = 64,
        image_size: int | list[int] = 28,
        channels: Literal[1, 3] = 3,
        patch_size: int = 7,
        num_image_tokens: int = 16,
        dropout: float = 0.0,
        qk_norm: bool = True,
        tied_head: bool = False,
        l2_reg: float = 1e-4,
        optimizer: Literal["sgd", "adam", "adamw"] = "sgd",
        lr: float = 0.01,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup: float = 0.1,
        final_lr: float = 0.0,
        dtype: Literal["float64", "float32"] = "float64",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.tokens = nn.Embedding(vocab_size, embed_dim)
        self.positions = nn.Parameter(torch.zeros(max_seq_len, embed_dim))
        self.patches = PatchEmbedding((height, width), channels, patch_size, num_image_tokens, embed_dim)
        self.transformer = Transformer(embed_dim, num_heads, num_layers, qk_norm, dropout)
        self.head = nn.Linear(embed_dim, vocab_size, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.1)
        nn.init.normal_(self.positions, std=0.1)
        nn.init.normal_(self.patches.position, std=0.1)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(embed_dim))
        if tied_head:
            self.head.weight = self.tokens.weight
        self.to(getattr(torch, dtype))

    def outputs(self, batch: Batch) -> Float[Tensor, "b a v"]:
        """Logits of the tokens that follow `answer_positions`, or of all where the batch does not say which."""
        ids = batch["input_ids"]
        is_image = ids == self.hparams["image_token_id"]
        pictures = self.patches(batch["pixel_values"].to(self.head.weight.dtype)).flatten(1, 2)
        order = (is_image.long().cumsum(1) - 1).clamp(0, pictures.shape[1] - 1)
        placed = pictures.gather(1, order.unsqueeze(-1).expand(*order.shape, pictures.shape[-1]))
        x = torch.where(is_image.unsqueeze(-1), placed, self.tokens(ids)) + self.positions[: ids.shape[1]]
        asking = _asking(batch)
        return self.head(self.transformer(x, self._visible(is_image, batch["attention_mask"]), asking))

    def _visible(self, is_image: Bool[Tensor, "b s"], mask: Int[Tensor, "b s"]) -> Bool[Tensor, "b s s"]:
        s = is_image.shape[1]
        number = (is_image.long().cumsum(1) - 1).div(self.hparams["num_image_tokens"], rounding_mode="floor")
        same = (number.unsqueeze(2) == number.unsqueeze(1)) & is_image.unsqueeze(2) & is_image.unsqueeze(1)
        causal = torch.ones(s, s, dtype=torch.bool, device=is_image.device).tril()
        eye = torch.eye(s, dtype=torch.bool, device=is_image.device)
        return ((causal | same) & mask.bool().unsqueeze(1)) | eye

    def output_losses(self, outputs: Float[Tensor, "b a v"], batch: Batch) -> Float[Tensor, " b"]:
        targets = _targets(batch)
        counted = targets != IGNORED
        each = F.cross_entropy(outputs.transpose(1, 2), targets.clamp_min(0), reduction="none")
        return (each * counted).sum(1) / counted.sum(1).clamp_min(1)

    def sample_losses(self, batch: Batch) -> Float[Tensor, " b"]:
        return self.output_losses(self.outputs(batch), batch)

    def penalty(self) -> Float[Tensor, ""]:
        squares = [p.square().sum() for p in self.parameters()]
        return 0.5 * self.hparams["l2_reg"] * torch.stack(squares).sum()


def _asking(batch: Batch) -> Int[Tensor, "b a"] | None:
    positions = batch.get("answer_positions")
    return None if positions is None else positions.clamp_min(0)


def _targets(batch: Batch) -> Int[Tensor, "b a"]:
    """The token that follows each position whose logits are given; `IGNORED` where none counts."""
    following = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    positions = batch.get("answer_positions")
    if positions is None:
        return following
    return following.gather(1, positions.clamp_min(0)).masked_fill(positions < 0, IGNORED)
