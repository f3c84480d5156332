"""The modules of the transformer: their formulas by hand, and every transform of torch.func on each."""

import math

import pytest
import torch
from torch.nn import functional as F

from ifloo.models.transformer import Attention, Block, PatchEmbedding, Transformer, rows_at
from ifloo.objective import differentiable_kernels
from tests.models.transforms import LAWS, Case

B, S, D, HEADS = 3, 5, 8, 2
ASKED = torch.tensor([[4, 0], [2, 2], [1, 3]])


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


X = draw(B, S, D)
VISIBLE = (draw(B, S, S) > 0) | torch.eye(S, dtype=torch.bool)


def made(kind, *sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(*sizes).double()


def patches(channels=1):
    return made(PatchEmbedding, (8, 4), channels, 2, 4, D)


def attention(qk_norm=True):
    return made(Attention, D, HEADS, qk_norm)


def transformer(layers=2, qk_norm=True):
    return made(Transformer, D, HEADS, layers, qk_norm, 0.0)


SEEN, ASKED_SEEN = VISIBLE.unsqueeze(1), rows_at(VISIBLE, ASKED).unsqueeze(1)
CASES = {
    "patches, grey": Case.of(patches(), draw(B, 2, 1, 8, 4)),
    "patches, RGB": Case.of(patches(3), draw(B, 1, 3, 8, 4)),
    "attention": Case.of(attention(), X, SEEN),
    "attention, asked": Case.of(attention(), X, ASKED_SEEN, rows_at(X, ASKED)),
    "attention, no norm": Case.of(attention(False), X, SEEN),
    "attention, no norm, asked": Case.of(attention(False), X, ASKED_SEEN, rows_at(X, ASKED)),
    "block": Case.of(made(Block, D, HEADS, True, 0.0), X, SEEN),
    "block, asked": Case.of(made(Block, D, HEADS, True, 0.0), X, ASKED_SEEN, ASKED),
    "transformer": Case.of(transformer(), X, VISIBLE),
    "transformer, asked": Case.of(transformer(), X, VISIBLE, ASKED),
    "transformer, no norm": Case.of(transformer(1, False), X, VISIBLE, ASKED),
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_transforms(case, law):
    law(case)


@pytest.mark.parametrize("rows", [X, SEEN, VISIBLE], ids=["numbers", "four dimensions", "booleans"])
def test_rows_at(rows):
    at = ASKED if rows.shape[1] == S else torch.zeros_like(ASKED)
    truth = torch.stack([rows[b, at[b]] for b in range(B)])
    assert torch.equal(rows_at(rows, at), truth)


def test_a_token_is_made_of_neighbouring_patches():
    """8 x 4 pixels, patches of 2 x 2, four tokens: each is the two patches of one row of them."""
    embedding, pixels = patches(3), draw(B, 2, 3, 8, 4)
    tokens = embedding(pixels)
    assert tokens.shape == (B, 2, 4, D)
    for t in range(4):
        band = pixels[:, :, :, 2 * t : 2 * t + 2]
        cut = torch.cat([band[..., 2 * k : 2 * k + 2].flatten(2) for k in range(2)], -1)
        truth = embedding.second(F.gelu(embedding.first(cut))) + embedding.position[t]
        torch.testing.assert_close(tokens[:, :, t], truth, rtol=1e-13, atol=1e-14)


def test_attention_is_that_of_torch():
    model = attention(qk_norm=False)
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in model.qkv(X).chunk(3, -1))
    with differentiable_kernels():
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=SEEN)
    truth = model.out(read.transpose(1, 2).flatten(2))
    torch.testing.assert_close(model(X, SEEN), truth, rtol=1e-12, atol=1e-14)


def test_normalised_queries_have_no_length():
    """A hundred times the weights of queries and keys changes nothing but what the 1e-6 under the root does."""
    model = attention()
    before = model(X, SEEN)
    with torch.no_grad():
        model.qkv.weight[: 2 * D] *= 100
        model.qkv.bias[: 2 * D] *= 100
    torch.testing.assert_close(model(X, SEEN), before, rtol=0, atol=1e-4)
    assert float((attention(qk_norm=False)(X, SEEN) - before).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_asked_for_is_a_part_of_the_whole(layers):
    model = transformer(layers)
    torch.testing.assert_close(model(X, VISIBLE, ASKED), rows_at(model(X, VISIBLE), ASKED), rtol=1e-12, atol=1e-13)


def test_what_is_not_visible_does_not_matter():
    """One layer, so that nothing is seen through a third token."""
    model, other = transformer(1), X.clone()
    other[:, 2] += draw(B, D)  # one number added to all of a token would be taken out again by its LayerNorm
    changed = (model(X, VISIBLE) - model(other, VISIBLE)).detach().abs().amax(-1)
    visible = VISIBLE[:, :, 2]
    # Outputs of size 1 in float64: a hidden token can move them by rounding alone, a few dozen times 2e-16.
    assert float(changed[~visible].max()) < 1e-13
    assert float(changed[visible].min()) > 1e-3


def test_the_more_layers_the_less_each_adds_at_the_start():
    """Their sum starts at the same size: the standard deviation is 1 / √(2 · layers · inputs)."""
    model = made(Transformer, 64, 4, 3, True, 0.0)
    for block in model.blocks:
        for weight in (block.attention.out.weight, block.down.weight):
            found = float(weight.detach().std()) * math.sqrt(2 * 3 * weight.shape[1])
            assert found == pytest.approx(1, abs=4 / math.sqrt(2 * weight.numel()))


def test_dropout_is_off_while_scoring_and_on_in_training():
    model = made(Block, D, HEADS, True, 0.5)
    kept = model.eval()(X, SEEN)
    assert torch.equal(model(X, SEEN), kept)
    assert not torch.equal(model.train()(X, SEEN), kept)
