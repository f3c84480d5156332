"""Small multimodal language model: image tokens replace `<image>` in a sequence of text tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from ifloo.errors import InputError
from ifloo.models.module import SampleLossModule
from ifloo.models.transformer import PatchEmbedding, Transformer
from ifloo.models.warmup_cosine import OptimizerName, WarmupCosine
from ifloo.params import DTYPES

IGNORED = -100  # label of tokens that the loss does not count
COUNTS = ("vocab_size", "embed_dim", "num_heads", "num_layers", "max_seq_len", "patch_size", "num_image_tokens")


Fields: TypeAlias = Mapping[str, Tensor]


class MultimodalLM(SampleLossModule[Fields]):
    """ℓ_i = mean cross-entropy of the answer's tokens, nats; R = ½ λ ‖θ‖² over all trained weights.

    Batches are dicts `{"input_ids" [b, s], "labels" [b, s], "attention_mask" [b, s], "pixel_values"
    [b, m, c, h, w], "sample_index" [b]}`. The k-th group of `num_image_tokens` image ids in a row stands for its k-th
    image; the tokens of one image attend to each other, all other tokens to the ones before them. With
    "answer_positions" [b, a] (the positions whose next token is labelled, padded with -1) logits and the last block are
    computed at these positions only, which changes no loss. A row without a labelled token has loss 0.

    Args:
        vocab_size: Number of tokens of the tokenizer, including special tokens.
        image_token_id: Id of an image token.
        embed_dim: Embedding dimension d.
        num_heads: Number of attention heads; a divisor of d.
        num_layers: Number of transformer blocks.
        max_seq_len: Number of learned positions; no row may be longer.
        image_size: Size of the images, pixels: a side or [height, width]; multiples of `patch_size`.
        channels: Number of colour channels: 1 for grey, 3 for RGB.
        patch_size: Side of a patch, pixels.
        num_image_tokens: Number of tokens of each image; a divisor of the number of patches.
        dropout: Dropout rate of each block's residual branches; must be 0 for attribution.
        qk_norm: Whether queries and keys are normalised, which keeps training smooth for longer.
        tied_head: Whether the head shares the weights of the token embedding.
        l2_reg: λ of the penalty.
        optimizer: `sgd`, `adam`, or `adamw` with decoupled `weight_decay`, which is not part of J.
        lr: Highest learning rate.
        momentum: Momentum of sgd.
        beta1: Decay rate of the first moment of adam and adamw.
        beta2: Decay rate of the second moment of adam and adamw.
        epsilon: Term added to the denominator of adam and adamw.
        weight_decay: Weight decay of adamw.
        warmup: Share of the steps in which the rate rises from 0 to `lr`; then it falls by a half cosine.
        final_lr: Learning rate at the last step, as a share of `lr`.
        dtype: Data type of the weights.

    Raises:
        InputError: If sizes do not go together, or a number is out of range.
    """

    def __init__(
        self,
        vocab_size: int = 263,
        image_token_id: int = 262,
        embed_dim: int = 48,
        num_heads: int = 4,
        num_layers: int = 2,
        max_seq_len: int = 64,
        image_size: int | list[int] = 28,
        channels: Literal[1, 3] = 1,
        patch_size: int = 14,
        num_image_tokens: int = 4,
        dropout: float = 0.0,
        qk_norm: bool = True,
        tied_head: bool = False,
        l2_reg: float = 1e-4,
        optimizer: OptimizerName = "adam",
        lr: float = 0.002,
        momentum: float = 0.9,
        beta1: float = 0.9,
        beta2: float = 0.99,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        warmup: float = 0.1,
        final_lr: float = 0.0,
        dtype: Literal["float64", "float32"] = "float64",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _check_counts(self.hparams)
        height, width = _sides(image_size)
        _check_sizes(height, width, patch_size, num_image_tokens, embed_dim, num_heads)
        _check_ranges(image_token_id, vocab_size, l2_reg, dropout)
        self.image_shape = (channels, height, width)
        self.descent = WarmupCosine(optimizer, lr, momentum, (beta1, beta2), epsilon, weight_decay, warmup, final_lr)
        self.tokens = nn.Embedding(vocab_size, embed_dim)
        self.positions = nn.Parameter(torch.zeros(max_seq_len, embed_dim))
        self.patches = PatchEmbedding((height, width), channels, patch_size, num_image_tokens, embed_dim)
        self.transformer = Transformer(embed_dim, num_heads, num_layers, qk_norm, dropout)
        self.head = nn.Linear(embed_dim, vocab_size, bias=False)
        for weight in (self.tokens.weight, self.positions, self.patches.position):
            nn.init.normal_(weight, std=0.1)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(embed_dim))
        if tied_head:
            self.head.weight = self.tokens.weight
        self.to(DTYPES[dtype])
        self.exact = MeanMetric()
        self.decoupled_decay = weight_decay

    def outputs(self, batch: Fields) -> Float[Tensor, "b a v"]:
        """Computes logits of the tokens that follow `answer_positions`, or of all tokens if the batch has no such key.

        Raises:
            InputError: If rows are longer than `max_seq_len`, or images have another shape than the model's.
        """
        self._check_shapes(batch)
        ids = batch["input_ids"]
        is_image = ids == self.hparams["image_token_id"]
        images = self.patches(batch["pixel_values"].to(self.head.weight.dtype)).flatten(1, 2)
        order = (is_image.long().cumsum(1) - 1).clamp(0, images.shape[1] - 1)
        placed = images.gather(1, order.unsqueeze(-1).expand(*order.shape, images.shape[-1]))
        x = torch.where(is_image.unsqueeze(-1), placed, self.tokens(ids)) + self.positions[: ids.shape[1]]
        positions = batch.get("answer_positions")
        queries = None if positions is None else positions.clamp_min(0)
        logits: Tensor = self.head(self.transformer(x, self._visible(is_image, batch["attention_mask"]), queries))
        return logits

    def output_losses(self, outputs: Float[Tensor, "b a v"], batch: Fields) -> Float[Tensor, " b"]:
        """Computes the mean cross-entropy of the labelled tokens of each row, nats."""
        targets = _targets(batch)
        counted = targets != IGNORED
        right = outputs.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        return ((outputs.logsumexp(-1) - right) * counted).sum(1) / counted.sum(1).clamp_min(1)

    def sample_losses(self, batch: Fields) -> Float[Tensor, " b"]:
        return self.output_losses(self.outputs(batch), batch)

    def penalty(self) -> Float[Tensor, ""]:
        strength: float = self.hparams["l2_reg"]
        return 0.5 * strength * torch.stack([p.square().sum() for p in self.parameters()]).sum()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.descent.over(self.parameters(), self.trainer.estimated_stepping_batches)

    def validation_step(self, batch: Fields, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Fields, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    @torch.no_grad()
    def generated(self, batch: Fields, end: int) -> Int[Tensor, "b max_seq_len"]:
        """Replaces the last answer of each row by the model's own, generated by greedy decoding and ended by `end`.

        Image tokens are never generated.

        Args:
            batch: Rows whose last run of labelled tokens is the answer to replace.
            end: Token that ends an answer; it also fills the rest of the row.

        Raises:
            InputError: If `outputs` raises it for this batch.
        """
        self._check_shapes(batch)
        length, start = self.hparams["max_seq_len"], _last_answer(batch["labels"])
        place = torch.arange(length, device=start.device)
        image = torch.tensor([self.hparams["image_token_id"]], device=start.device)
        ids = F.pad(batch["input_ids"], (0, length - batch["input_ids"].shape[1]), value=end)
        ids = torch.where(place < start.unsqueeze(1), ids, end)
        at, done = start.clone(), torch.zeros_like(start, dtype=torch.bool)
        while not bool(done.all()):
            prefix = {**batch, "input_ids": ids, "attention_mask": (place < at.unsqueeze(1)).long()}
            logits = self.outputs({**prefix, "answer_positions": (at - 1).unsqueeze(1)})[:, 0]
            token = logits.index_fill(1, image, -torch.inf).argmax(-1)
            here = (place == at.unsqueeze(1)) & ~done.unsqueeze(1)
            ids = torch.where(here, token.unsqueeze(1), ids)
            at = at + (~done).long()
            done = done | (token == end) | (at >= length)
        return ids

    def _evaluate(self, batch: Fields, stage: str) -> None:
        outputs, targets = self.outputs(batch), _targets(batch)
        right = ((outputs.argmax(-1) == targets) | (targets == IGNORED)).all(1)
        self.exact(right.double())
        self.log(f"{stage}/exact_match", self.exact, on_epoch=True, batch_size=len(right))
        self.log(f"{stage}/loss", self.output_losses(outputs, batch).mean(), on_epoch=True, batch_size=len(right))

    def _check_shapes(self, batch: Fields) -> None:
        """Checks shapes only, which are known under every transform.

        Raises:
            InputError: If rows are longer than `max_seq_len`, or images have another shape than the model's.
        """
        length, most = batch["input_ids"].shape[1], self.hparams["max_seq_len"]
        if length > most:
            raise InputError(
                f"The model knows max_seq_len = {most} positions; got rows of {length} tokens.\n"
                f"  Raise the model's max_seq_len to {length}, or lower that of the data to {most}."
            )
        shape = tuple(batch["pixel_values"].shape[-3:])
        if shape != self.image_shape:
            found, known = (" x ".join(map(str, sizes)) for sizes in (shape, self.image_shape))
            raise InputError(
                f"The model reads images of {known} (channels x height x width); got {found}.\n"
                "  Give the model the channels and the image_size of the data."
            )

    def _visible(self, is_image: Bool[Tensor, "b s"], mask: Int[Tensor, "b s"]) -> Bool[Tensor, "b s s"]:
        """Computes the attention mask [query, key]; padding tokens see themselves, so no softmax is empty."""
        s = is_image.shape[1]
        which = (is_image.long().cumsum(1) - 1).div(self.hparams["num_image_tokens"], rounding_mode="floor")
        same = (which.unsqueeze(2) == which.unsqueeze(1)) & is_image.unsqueeze(2) & is_image.unsqueeze(1)
        causal = torch.ones(s, s, dtype=torch.bool, device=is_image.device).tril()
        itself = torch.eye(s, dtype=torch.bool, device=is_image.device)
        return ((causal | same) & mask.bool().unsqueeze(1)) | itself


def _targets(batch: Fields) -> Int[Tensor, "b a"]:
    """Returns the next token of each position that has logits; `IGNORED` if the loss does not count it."""
    following = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    positions = batch.get("answer_positions")
    if positions is None:
        return following
    return following.gather(1, positions.clamp_min(0)).masked_fill(positions < 0, IGNORED)


def _last_answer(labels: Int[Tensor, "b s"]) -> Int[Tensor, " b"]:
    """Returns the position where the last run of labelled tokens of each row begins."""
    counted = labels != IGNORED
    begins = counted & ~F.pad(counted[:, :-1], (1, 0), value=False)
    place = torch.arange(labels.shape[1], device=labels.device)
    return torch.where(begins, place, 0).amax(1)


def _sides(image_size: int | list[int]) -> tuple[int, int]:
    """Returns height and width, pixels.

    Raises:
        InputError: If `image_size` is not one or two numbers of 1 or more.
    """
    sides = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(
            f"image_size must be a side or [height, width] in pixels, each 1 or more, got {image_size}.\n"
            "  28 is a square; [28, 56] is twice as wide as high."
        )
    return sides[0], sides[1]


def _check_counts(settings: Mapping[str, Any]) -> None:
    for name in COUNTS:
        if settings[name] < 1:
            raise InputError(f"{name} must be 1 or more, got {settings[name]}.")


def _check_sizes(height: int, width: int, patch: int, tokens: int, embed_dim: int, heads: int) -> None:
    if height % patch or width % patch:
        raise InputError(
            f"image_size must be a multiple of patch_size in both directions; got {height} x {width} and {patch}.\n"
            "  Change one of them."
        )
    patches = (height // patch) * (width // patch)
    if patches % tokens:
        raise InputError(
            f"num_image_tokens must divide the number of patches; got {tokens} for {patches} patches of {patch} x "
            f"{patch} pixels in {height} x {width}.\n  Take {patches}, or a divisor of it."
        )
    if embed_dim % heads:
        raise InputError(f"num_heads must divide embed_dim; got {heads} and {embed_dim}.\n  Change one of them.")


def _check_ranges(image_token_id: int, vocab_size: int, l2_reg: float, dropout: float) -> None:
    if not 0 <= image_token_id < vocab_size:
        raise InputError(
            f"image_token_id must be one of the tokens 0..{vocab_size - 1}, got {image_token_id}.\n"
            "  Give vocab_size and image_token_id of the tokenizer of the data."
        )
    if not 0 <= l2_reg < float("inf"):
        raise InputError(f"l2_reg must be a finite number >= 0, got {l2_reg}.\n  It is the λ of the penalty ½λ‖θ‖².")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be from 0 to below 1, got {dropout}.\n  Attribution needs 0.")
