"""Causal transformer whose modules all work under vmap, jvp and vjp: no fused kernels, no state, no statistics."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F


class PatchEmbedding(nn.Module):
    """Embedding of an image: it is cut into patches, and each group of neighbouring patches becomes one token."""

    def __init__(
        self, image_size: tuple[int, int], channels: int, patch_size: int, num_tokens: int, embed_dim: int
    ) -> None:
        """Creates the two layers and the position embedding.

        Args:
            image_size: Height and width, pixels; multiples of the patch size.
            channels: Number of channels of a pixel.
            patch_size: Side of a patch, pixels.
            num_tokens: Number of groups of consecutive patches (row by row); a divisor of the number of patches.
            embed_dim: Embedding dimension d.
        """
        super().__init__()
        height, width = image_size
        self.patch_size, self.num_tokens = patch_size, num_tokens
        patches = (height // patch_size) * (width // patch_size)
        features = patches // num_tokens * channels * patch_size**2
        self.first = nn.Linear(features, embed_dim)
        self.second = nn.Linear(embed_dim, embed_dim)
        self.position = nn.Parameter(torch.zeros(num_tokens, embed_dim))

    def forward(self, pixels: Float[Tensor, "b m c h w"]) -> Float[Tensor, "b m t d"]:
        b, m, c, h, w = pixels.shape
        p = self.patch_size
        patches = pixels.reshape(b, m, c, h // p, p, w // p, p).permute(0, 1, 3, 5, 2, 4, 6)
        groups = patches.reshape(b, m, self.num_tokens, -1)
        tokens: Tensor = self.second(F.gelu(self.first(groups)))
        return tokens + self.position


class Attention(nn.Module):
    """Multi-head self-attention, optionally with normalised queries and keys (Henry et al. 2020).

    With normalisation no logit exceeds √d_head, so that training remains smooth for longer.
    """

    def __init__(self, embed_dim: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads, self.qk_norm = num_heads, qk_norm
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(
        self, x: Float[Tensor, "b s d"], visible: Bool[Tensor, "b 1 a s"], queries: Float[Tensor, "b a d"] | None = None
    ) -> Float[Tensor, "b a d"]:
        """Computes the attention output of the queries `queries` (None: all of x) over keys and values of x."""
        if queries is None:
            q, k, v = (self._heads(part) for part in self.qkv(x).chunk(3, -1))
        else:
            d = x.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            q = self._heads(F.linear(queries, weight[:d], bias[:d]))
            k, v = (self._heads(part) for part in F.linear(x, weight[d:], bias[d:]).chunk(2, -1))
        if self.qk_norm:
            q, k = _unit_rms(q), _unit_rms(k)
        logits = (q / math.sqrt(q.shape[-1])) @ k.mT
        weights = logits.masked_fill(~visible, -torch.inf).softmax(-1)
        read: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return read

    def _heads(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b heads s e"]:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return heads.transpose(1, 2)


def _unit_rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Block(nn.Module):
    """Pre-norm attention and GELU perceptron, each added to the residual stream."""

    def __init__(self, embed_dim: int, num_heads: int, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads, qk_norm)
        self.up, self.down = nn.Linear(embed_dim, 4 * embed_dim), nn.Linear(4 * embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b s d"], visible: Bool[Tensor, "b 1 a s"], queries: Int[Tensor, "b a"] | None = None
    ) -> Float[Tensor, "b a d"]:
        """Computes the residual stream after this block, at the positions `queries` (None: at all positions)."""
        normed = self.norm_attention(x)
        if queries is None:
            x = x + self.dropout(self.attention(normed, visible))
        else:
            x = rows_at(x, queries) + self.dropout(self.attention(normed, visible, rows_at(normed, queries)))
        added: Tensor = self.dropout(self.down(F.gelu(self.up(self.norm_mlp(x)))))
        return x + added


def rows_at(x: Shaped[Tensor, "b s *d"], positions: Int[Tensor, "b a"]) -> Shaped[Tensor, "b a *d"]:
    """Gathers x[b, positions[b, a]]."""
    index = positions.reshape(*positions.shape, *(1 for _ in x.shape[2:])).expand(*positions.shape, *x.shape[2:])
    return x.gather(1, index)


class Transformer(nn.Module):
    """Transformer blocks and a final norm over embedded tokens."""

    def __init__(self, embed_dim: int, num_heads: int, num_layers: int, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, qk_norm, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(embed_dim)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):  # residual branches, smaller the more layers
                nn.init.normal_(parameter, std=1 / math.sqrt(2 * num_layers * parameter.shape[1]))

    def forward(
        self, x: Float[Tensor, "b s d"], visible: Bool[Tensor, "b s s"], queries: Int[Tensor, "b a"] | None = None
    ) -> Float[Tensor, "b a d"]:
        """Computes the stream at the positions `queries` (None: at all); the last block computes only these."""
        *first, last = self.blocks
        for block in first:
            x = block(x, visible.unsqueeze(1))
        seen = visible if queries is None else rows_at(visible, queries)
        stream: Tensor = self.norm(last(x, seen.unsqueeze(1), queries))
        return stream
