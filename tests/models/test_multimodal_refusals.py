"""What the multimodal model refuses, in its words."""

import pytest
import torch

from ifloo.errors import InputError
from ifloo.objective import Objective, preflight
from tests.models.pictured import END, batch, samples, tiny

SIDES = "  28 is a square; [28, 56] is twice as wide as high."
TOKENS = "  Give vocab_size and image_token_id of the tokenizer of the data."
LAMBDA = "  It is the λ of the penalty ½λ‖θ‖²."
SETTINGS_REFUSED = [
    ({"vocab_size": 0}, "vocab_size must be 1 or more, got 0."),
    ({"embed_dim": 0}, "embed_dim must be 1 or more, got 0."),
    ({"num_heads": -1}, "num_heads must be 1 or more, got -1."),
    ({"num_layers": 0}, "num_layers must be 1 or more, got 0."),
    ({"max_seq_len": 0}, "max_seq_len must be 1 or more, got 0."),
    ({"patch_size": 0}, "patch_size must be 1 or more, got 0."),
    ({"num_image_tokens": 0}, "num_image_tokens must be 1 or more, got 0."),
    (
        {"image_size": 0},
        f"image_size must be a side or [height, width] in pixels, each 1 or more, got 0.\n{SIDES}",
    ),
    (
        {"image_size": [8, 8, 1]},
        f"image_size must be a side or [height, width] in pixels, each 1 or more, got [8, 8, 1].\n{SIDES}",
    ),
    (
        {"image_size": [8, 10]},
        "image_size must be a multiple of patch_size in both directions; got 8 x 10 and 4.\n  Change one of them.",
    ),
    (
        {"image_size": [10, 8]},
        "image_size must be a multiple of patch_size in both directions; got 10 x 8 and 4.\n  Change one of them.",
    ),
    (
        {"image_size": [8, 12], "num_image_tokens": 4},
        "num_image_tokens must divide the number of patches; got 4 for 6 patches of 4 x 4 pixels in 8 x 12.\n"
        "  Take 6, or a divisor of it.",
    ),
    ({"num_heads": 3}, "num_heads must divide embed_dim; got 3 and 8.\n  Change one of them."),
    ({"image_token_id": 11}, f"image_token_id must be one of the tokens 0..10, got 11.\n{TOKENS}"),
    ({"image_token_id": -1}, f"image_token_id must be one of the tokens 0..10, got -1.\n{TOKENS}"),
    ({"l2_reg": -0.5}, f"l2_reg must be a finite number >= 0, got -0.5.\n{LAMBDA}"),
    ({"l2_reg": float("nan")}, f"l2_reg must be a finite number >= 0, got nan.\n{LAMBDA}"),
    ({"l2_reg": float("inf")}, f"l2_reg must be a finite number >= 0, got inf.\n{LAMBDA}"),
    ({"dropout": 1.0}, "dropout must be from 0 to below 1, got 1.0.\n  Attribution needs 0."),
    ({"dropout": -0.1}, "dropout must be from 0 to below 1, got -0.1.\n  Attribution needs 0."),
]


@pytest.mark.parametrize(("changes", "message"), SETTINGS_REFUSED, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_settings(changes, message):
    with pytest.raises(InputError) as caught:
        tiny(**changes)
    assert str(caught.value) == message


LONG = (
    "The model knows max_seq_len = 16 positions; got rows of 17 tokens.\n"
    "  Raise the model's max_seq_len to 17, or lower that of the data to 16."
)
BATCHES_REFUSED = {
    "long rows": ({}, batch("0(1)", width=17), LONG),
    "large images": (
        {"image_size": 4, "num_image_tokens": 1},
        batch("0A(1)"),
        "The model reads images of 1 x 4 x 4 (channels x height x width); got 1 x 8 x 8.\n"
        "  Give the model the channels and the image_size of the data.",
    ),
    "grey images": (
        {"channels": 3},
        batch("0A(1)"),
        "The model reads images of 3 x 8 x 8 (channels x height x width); got 1 x 8 x 8.\n"
        "  Give the model the channels and the image_size of the data.",
    ),
    "images on their side": (  # as many pixels as the model's own
        {"image_size": [4, 16]},
        batch("0A(1)"),
        "The model reads images of 1 x 4 x 16 (channels x height x width); got 1 x 8 x 8.\n"
        "  Give the model the channels and the image_size of the data.",
    ),
}


@pytest.mark.parametrize(("changes", "some", "message"), BATCHES_REFUSED.values(), ids=BATCHES_REFUSED)
def test_batches(changes, some, message):
    model = tiny(**changes)
    for ask in (model.outputs, model.sample_losses, lambda rows: model.generated(rows, END)):
        with pytest.raises(InputError) as caught:
            ask(some)
        assert str(caught.value) == message


def test_the_door_says_the_same():
    """Before the transforms begin, so that no other error is put around it."""
    loader = torch.utils.data.DataLoader(samples("0A1(2)", "0A1BCD2(34567)"), batch_size=2)
    model = tiny(max_seq_len=10)
    objective = Objective.of(model, loader)
    with pytest.raises(InputError) as caught:
        preflight(objective, objective.losses.theta())
    assert str(caught.value) == (
        "The model knows max_seq_len = 10 positions; got rows of 17 tokens.\n"
        "  Raise the model's max_seq_len to 17, or lower that of the data to 10."
    )


def test_the_door_opens():
    loader = torch.utils.data.DataLoader(samples("0A1(2)", "3(45)", "AB(0)"), batch_size=2)
    objective = Objective.of(tiny(), loader)
    assert preflight(objective, objective.losses.theta()).grad_norm > 0
