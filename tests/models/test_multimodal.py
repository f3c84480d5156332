"""The multimodal model: its losses against sums by hand, who sees whom, what it says, and every transform."""

import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap

from ifloo.models.multimodal import IGNORED
from ifloo.objective import FunctionalLosses
from ifloo.objective.batches import slice_batch
from ifloo.objective.forms import map_tensors
from ifloo.params import ParamSpace
from tests.models.pictured import END, IMAGE, LENGTH, PER_IMAGE, PICTURES, WORDS, batch, read, tiny, without
from tests.models.transforms import LAWS, Case

ROUNDING = {"rtol": 0, "atol": 1e-12}
MODELS = {
    "one layer": {"num_layers": 1},
    "two layers": {},
    "no norm": {"qk_norm": False},
    "tied": {"tied_head": True},
    "tall images": {"image_size": [16, 8], "num_image_tokens": PER_IMAGE},
}


class Losses(nn.Module):
    """Makes `sample_losses` the forward pass."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, rows):
        return self.model.sample_losses(rows)


def case(changes, asked):
    some = batch(*WORDS)
    if "image_size" in changes:
        some["pixel_values"] = torch.cat([some["pixel_values"], some["pixel_values"].flip(-2)], -2)
    return Case.of(Losses(tiny(**changes)), some if asked else without(some))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("asked", [True, False], ids=["asked", "everywhere"])
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_transforms(changes, asked, law):
    law(case(changes, asked))


# Losses.


def test_a_loss_is_the_mean_over_the_answers_of_the_row():
    """Of all turns together: a long answer counts more than a short one."""
    model, some = tiny(), batch(*WORDS)
    logits, losses = model.outputs(without(some)).log_softmax(-1), model.sample_losses(some)
    for row, word in enumerate(WORDS):
        each = [-logits[row, k - 1, label] for k, label in enumerate(read(word)[1]) if label != IGNORED]
        truth = torch.stack(each).mean() if each else torch.zeros_like(losses[row])
        torch.testing.assert_close(losses[row], truth, **ROUNDING)


@pytest.mark.parametrize("changes", [{}, {"num_layers": 1}, {"qk_norm": False}], ids=str)
def test_where_to_look_changes_no_loss(changes):
    model = tiny(**changes)
    gradients = []
    for some in (batch(*WORDS), batch(*WORDS, asked=9), without(batch(*WORDS))):
        losses = model.sample_losses(some)
        gradients.append((losses, *torch.autograd.grad(losses.square().sum(), list(model.parameters()))))
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0], **ROUNDING)


SURROUNDINGS = {
    "alone": lambda word: batch(word),
    "wider": lambda word: batch(word, width=LENGTH),
    "room for answers": lambda word: batch(word, asked=7),
    "room for images": lambda word: batch(word, images=3),
    "beside others": lambda word: batch(word, "5D6(7)", "ABCD0(1)"),
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_what_surrounds_a_row_does_not_matter(surroundings):
    model = tiny()
    together = model.sample_losses(batch(*WORDS))
    found = torch.stack([model.sample_losses(surroundings(word))[0] for word in WORDS])
    torch.testing.assert_close(found, together, **ROUNDING)


def test_what_fills_a_row_does_not_matter():
    model, some = tiny(), batch(*WORDS, width=LENGTH, images=3)
    shown = torch.tensor([sum(mark in "ABCD" for mark in word) for word in WORDS])
    other = {
        **some,
        "input_ids": torch.where(some["attention_mask"] == 1, some["input_ids"], 5),
        "pixel_values": torch.where(
            (torch.arange(3) < shown[:, None])[:, :, None, None, None], some["pixel_values"], PICTURES[3]
        ),
    }
    assert not torch.equal(other["pixel_values"], some["pixel_values"])
    torch.testing.assert_close(model.sample_losses(other), model.sample_losses(some), **ROUNDING)


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "everywhere"])
def test_a_row_without_an_answer_has_no_loss_and_no_gradient(asked):
    """A mean over no token is nan in jvp and 0 in vmap(grad)."""
    model, some = tiny(), batch("012", "0A1", "3(4)")
    some = some if asked else without(some)
    losses = FunctionalLosses(model, ParamSpace.of(model))
    theta = losses.theta()

    def alone(t, row):
        return losses.sample_losses(t, map_tensors(lambda x: x.unsqueeze(0), row)).squeeze(0)

    gradients = vmap(grad(alone), (None, 0))(theta, some)
    value, slope = jvp(lambda t: losses.sample_losses(t, some), (theta,), (torch.ones_like(theta),))
    for found in (value, slope, gradients.norm(dim=1)):
        assert torch.isfinite(found).all()
        assert found[:2].tolist() == [0, 0]
        assert float(found[2].abs()) > 1e-3
    assert torch.isfinite(gradients).all()


# Who sees whom.

SEEN = {
    "a picture, by what follows it": ("01A2(3)", "01B2(3)", [2, 3, 4, 5, 6]),
    "text, by what follows it": ("01A2(3)", "01A4(3)", [4, 5, 6]),
    "the first token, by all": ("01A2(3)", "71A2(3)", [0, 1, 2, 3, 4, 5, 6]),
    "the second picture": ("0A1B2(3)", "0A1C2(3)", [4, 5, 6, 7, 8]),
    "the first picture": ("0A1B2(3)", "0C1B2(3)", [1, 2, 3, 4, 5, 6, 7, 8]),
    "the second of two in a row, not by the first": ("0AB(3)", "0AC(3)", [3, 4, 5, 6]),
}


def changed(one, other):
    """Where the logits of the first row differ."""
    model = tiny()
    apart = (model.outputs(without(one)) - model.outputs(without(other)))[0].abs().amax(-1)
    # Logits of size 1 in float64: what is not seen moves them by rounding at most, what is seen by 1e-2 and more.
    assert ((apart < 1e-13) | (apart > 1e-3)).all()
    return (apart > 1e-3).nonzero().flatten().tolist()


@pytest.mark.parametrize(("word", "other", "where"), SEEN.values(), ids=SEEN)
def test_what_is_seen(word, other, where):
    assert changed(batch(word), batch(other)) == where


def test_the_tokens_of_one_picture_see_each_other():
    """Its last pixel, which the second of the two tokens is made of, moves the first one too."""
    some, other = batch("01A2(3)"), batch("01A2(3)")
    other["pixel_values"][0, 0, 0, -1, -1] += 1
    assert changed(some, other) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("hidden", [0, 4])
def test_what_the_mask_hides_is_seen_by_itself_alone(hidden):
    """The first token sees nothing else: without itself its softmax would be empty, and every gradient nan."""
    some, other = batch("01A2(3)"), batch("01A2(3)")
    for each in (some, other):
        each["attention_mask"][0, hidden] = 0
    other["input_ids"][0, hidden] = 7
    assert changed(some, other) == [hidden]


def test_pictures_go_where_they_are_named():
    """What the transformer is given, by hand."""
    model, words = tiny(), ("0A1B2(3)", "CD(4)", "5(6)")
    given = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model.outputs(batch(*words))
    embedded = dict(zip("ABCD", model.patches(PICTURES.unsqueeze(1)).squeeze(1), strict=True))
    for row, word in enumerate(words):
        parts = [embedded[mark] if mark in "ABCD" else model.tokens.weight[read(mark)[0]] for mark in word]
        truth = torch.cat(parts)
        truth = truth + model.positions[: len(truth)]
        torch.testing.assert_close(given[0][row, : len(truth)], truth, **ROUNDING)


def test_without_positions_the_order_of_pictures_is_lost():
    """In one layer the answer reads tokens as they are embedded: all four of two pictures, each once."""
    model = tiny(num_layers=1)
    with torch.no_grad():
        model.positions.zero_()
        model.patches.position.zero_()
    logits = [model.outputs(batch(word))[0, 0] for word in ("AB0(1)", "BA0(1)", "AA0(1)")]
    torch.testing.assert_close(logits[1], logits[0], **ROUNDING)
    assert float((logits[2] - logits[0]).detach().abs().max()) > 1e-6


# What it says.


def greedy(model, word):
    """Token by token, each time from all there is; a batch of one without padding."""
    ids, labels = read(word)
    start = max(k for k, label in enumerate(labels) if label != IGNORED and labels[k - 1] == IGNORED)
    ids, some = ids[:start], without(batch(word))
    while len(ids) < LENGTH and (len(ids) == start or ids[-1] != END):
        row = torch.tensor([ids])
        asked = {**some, "input_ids": row, "attention_mask": torch.ones_like(row)}
        ids.append(int(model.outputs(asked)[0, -1, :IMAGE].argmax()))  # the last token, of images, is never said
    return ids, ids + [END] * (LENGTH - len(ids))


def talkative():
    """Says many things, and sometimes that it has said all."""
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


SAID = ("0A1(23)", "1(5)6(71)", "A2B3(0)", "0(7)", "3ABCD14(0)", "D(1)", "65(2)", "C7(4)", "2(0)", "ABCDABC(3)")


def test_it_says_what_is_likeliest():
    model = talkative()
    truth = [greedy(model, word) for word in SAID]
    assert model.generated(batch(*SAID), END).tolist() == [filled for _, filled in truth]
    ended = [ids[-1] == END for ids, _ in truth]
    full = [len(ids) == LENGTH for ids, _ in truth]
    assert any(end and not whole for end, whole in zip(ended, full, strict=True))
    assert any(whole and not end for end, whole in zip(ended, full, strict=True))


def test_earlier_turns_stay():
    word = "4(5)6(71)"
    said = talkative().generated(batch(word), END)[0].tolist()
    assert said[:4] == read(word)[0][:4]


@pytest.mark.parametrize("width", [0, LENGTH])
@pytest.mark.parametrize("word", SAID)
def test_what_it_says_of_a_row_is_no_matter_of_the_others(word, width):
    """A row that has filled all its places keeps its last word while others go on."""
    model = talkative()
    (together,) = slice_batch(model.generated(batch(word, *SAID), END), slice(0, 1))
    assert torch.equal(model.generated(batch(word, width=width), END)[0], together)


# Penalty and weights.


@pytest.mark.parametrize("tied", [False, True])
def test_penalty(tied):
    """A tied weight is one weight."""
    model = tiny(tied_head=tied)
    squares = sum(float(p.detach().square().sum()) for p in model.parameters())
    assert float(model.penalty().detach()) == pytest.approx(0.005 * squares, rel=1e-14)


def test_a_tied_head_is_one_parameter():
    model, free = tiny(tied_head=True), tiny()
    assert model.head.weight is model.tokens.weight
    space = ParamSpace.of(model)
    assert "head.weight" not in space.names
    assert space.size == ParamSpace.of(free).size - free.head.weight.numel()
    losses, some = FunctionalLosses(model, space), batch(*WORDS)
    theta = losses.theta()

    def value(t):
        return losses.sample_losses(t, some).sum() + losses.penalty(t)

    plain = model.sample_losses(some).sum() + model.penalty()
    truth = torch.autograd.grad(plain, list(model.parameters()))
    flat = torch.cat([g.flatten() for g in truth])
    torch.testing.assert_close(grad(value)(theta), flat, **ROUNDING)
    torch.testing.assert_close(value(theta), plain.detach(), **ROUNDING)


def test_no_convexity_is_known():
    assert tiny().strong_convexity() is None


def test_the_seed_makes_the_model():
    one, same, other = (dict(tiny(seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["tokens.weight"], other["tokens.weight"])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_dtype(dtype):
    model = tiny(dtype=dtype)
    assert ParamSpace.of(model).dtype == getattr(torch, dtype)
    assert model.sample_losses(batch(*WORDS)).dtype == getattr(torch, dtype)
