"""The data module: where its rows come from, what it says, loaders, fingerprint, and the settings it refuses."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from ifloo.data import ByteTokenizer, MultimodalDataModule
from ifloo.data.multimodal.embedded import EmbeddedSet
from ifloo.data.multimodal.settings import canvas, check_settings
from ifloo.errors import InputError, WorkError
from tests.data.multimodal.conftest import IDS, ROWS
from tests.data.multimodal.rows import conversation, write_jsonl

SMALL: dict[str, Any] = {"image_size": [4, 6], "num_image_tokens": 2}


def ready(data: MultimodalDataModule) -> MultimodalDataModule:
    data.setup()
    return data


@pytest.fixture
def own(folder: Path) -> dict[str, Any]:
    """Settings for the five rows to train on and two of them to test on."""
    test = write_jsonl(folder / "test.jsonl", [b"", *ROWS[:3]])
    return {"train_jsonl": str(folder / "rows.jsonl"), "test_jsonl": str(test), **SMALL}


@pytest.fixture(scope="module")
def embedded_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("embedded"))


def test_rows_of_ones_own(own: dict[str, Any], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "ifloo"):
        data = ready(MultimodalDataModule(**own, batch_size=2))
        data.setup("fit")
    assert caplog.messages == ["Image-text data: 5 training and 2 test rows (jsonl: train_jsonl is given)"]
    assert (data.source_taken, data.source_reason, data.corrupted_ids) == ("jsonl", "train_jsonl is given", ())
    assert (data.skipped, data.rows_cut, data.vocab_size) == ([], 0, 263)
    batches = list(data.train_dataloader())
    assert [len(batch["sample_index"]) for batch in batches] == [2, 2, 1]
    assert sorted(torch.cat([batch["sample_index"] for batch in batches]).tolist()) == IDS
    assert [batch["sample_index"].tolist() for batch in data.val_dataloader()] == [[1, 3]]
    assert [batch["sample_index"].tolist() for batch in data.test_dataloader()] == [[1, 3]]
    assert len({batch["input_ids"].shape[1] for batch in batches}) == 1


@pytest.mark.parametrize("batch_size", [5, 100])
def test_a_full_batch_has_the_order_of_the_file(own: dict[str, Any], batch_size: int):
    (batch,) = ready(MultimodalDataModule(**own, batch_size=batch_size)).train_dataloader()
    assert batch["sample_index"].tolist() == IDS


def test_processes_that_load(own: dict[str, Any]):
    alone = list(ready(MultimodalDataModule(**own, batch_size=2, shuffle=False)).train_dataloader())
    helped = list(ready(MultimodalDataModule(**own, batch_size=2, shuffle=False, num_workers=1)).train_dataloader())
    for a, b in zip(alone, helped, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_image_root(own: dict[str, Any], folder: Path):
    elsewhere = folder / "lists"
    elsewhere.mkdir()
    for setting in ("train_jsonl", "test_jsonl"):
        moved = elsewhere / Path(own[setting]).name
        Path(own[setting]).rename(moved)
        own[setting] = str(moved)
    with pytest.raises(InputError, match=rf"rows.jsonl, line 1: image 'a.png': expected a file in {elsewhere}, found"):
        MultimodalDataModule(**own).setup()
    data = ready(MultimodalDataModule(**own, image_root=str(folder)))
    assert len(data.train_set.pictures(3)) == 2


def test_what_was_left_out_and_cut_is_said(own: dict[str, Any], folder: Path, caplog: pytest.LogCaptureFixture):
    write_jsonl(folder / "rows.jsonl", [b"[]", *ROWS, b"7"])
    data = ready(MultimodalDataModule(**own, on_bad_row="skip", max_seq_len=24, test_limit=9))
    reason = "expected an object {...}, found a"
    file = f"{folder}/rows.jsonl"
    told = [(record.levelname, record.message) for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [
        ("WARNING", f"{file}: 2 of 7 rows are bad and left out, the first at line 1: {reason} list"),
        ("WARNING", "test_limit is 9, the usable test rows are 2: all of them are used"),
        ("WARNING", "4 rows are longer than max_seq_len 24 and lost text"),
    ]
    assert data.skipped == [
        {"file": file, "line": 1, "reason": f"{reason} list"},
        {"file": file, "line": 8, "reason": f"{reason} number"},
    ]
    assert data.rows_cut == 4


def test_batches_of_test_ids(own: dict[str, Any], folder: Path):
    write_jsonl(folder / "test.jsonl", [b"", ROWS[0], b"{}", *ROWS[2:]])
    data = ready(MultimodalDataModule(**own, on_bad_row="skip", test_limit=3))
    assert data.test_batch([4, 1])["sample_index"].tolist() == [4, 1]
    reason = "expected a key conversations or messages, found no key"
    for id_, steps in [
        (0, "Choose another id."),
        (2, f"Choose another id, or correct line 3 of {folder}/test.jsonl ({reason})."),
        (5, "Choose another id, or raise test_limit (it is 3)."),
    ]:
        with pytest.raises(InputError) as caught:
            data.test_batch([1, id_])
        assert (
            str(caught.value)
            == f"no test row in use has id {id_}: the 3 test rows in use have ids within 1..4.\n  {steps}"
        )


def test_fingerprint(own: dict[str, Any], folder: Path, tmp_path: Path):
    def of(**settings: Any) -> str:
        return ready(MultimodalDataModule(**own | settings)).fingerprint()

    before = of()
    free = {"test_limit": 1, "batch_size": 2, "dtype": "float32", "on_bad_row": "skip", "image_root": str(folder)}
    assert {of(**{name: value}) for name, value in free.items()} == {before}
    assert of(train_limit=4) != before
    write_jsonl(folder / "rows.jsonl", [*ROWS[:-1], conversation("1 + 1?", "3")])
    assert of() != before
    assert MultimodalDataModule.free_settings == {
        "train_jsonl", "test_jsonl", "image_root", "root", "test_limit", "on_bad_row", "num_workers",
    }  # fmt: skip


def test_the_set_that_comes_with_ifloo(embedded_root: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "ifloo"):
        data = ready(MultimodalDataModule(root=embedded_root, corrupt=0.05))
    assert caplog.messages == [
        f"Image-text data: 2000 training and 200 test rows (embedded: no train_jsonl is given; made in {embedded_root})"
    ]
    assert data.source_taken == "embedded"
    assert len(data.corrupted_ids) == 100
    batch = data.test_batch([0])
    assert {name: tuple(column.shape[1:]) for name, column in batch.items()} == {
        "input_ids": (48,),
        "labels": (48,),
        "attention_mask": (48,),
        "answer_positions": (7,),
        "pixel_values": (1, 1, 28, 56),
        "image_flags": (1,),
        "sample_index": (),
    }
    clean = ready(MultimodalDataModule(root=embedded_root))
    changed = [i for i in range(2000) if clean.train_set.answer(i) != data.train_set.answer(i)]
    assert tuple(changed) == data.corrupted_ids
    assert clean.fingerprint() != data.fingerprint()
    few = ready(MultimodalDataModule(root=embedded_root, corrupt=0.05, train_limit=50))
    assert few.corrupted_ids == tuple(i for i in changed if i < 50)


def test_the_set_is_written_by_prepare_data_and_found_by_setup(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def make(root: Path, corrupt: float) -> EmbeddedSet:
        asked.append((root, corrupt))
        return EmbeddedSet(folder / "rows.jsonl", folder / "rows.jsonl", folder, (0, 1, 3))

    monkeypatch.setattr("ifloo.data.multimodal.module.make_embedded", make)
    data = MultimodalDataModule(root="somewhere", corrupt=0.5, **SMALL)
    data.prepare_data()
    data.setup()
    assert asked == [(Path("somewhere"), 0.5)]
    assert data.corrupted_ids == (0, 3)
    ready(MultimodalDataModule(root="somewhere", **SMALL))  # a process that did not prepare
    assert asked[1:] == [(Path("somewhere"), 0.0)]


def test_data_before_setup():
    data = MultimodalDataModule()
    assert (data.vocab_size, type(data.tokenizer)) == (263, ByteTokenizer)
    with pytest.raises(WorkError) as caught:
        data.train_dataloader()
    assert str(caught.value) == "MultimodalDataModule holds no data yet.\n  Call its setup() first (a Trainer does)."


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train_limit": 0},
            "train_limit: expected 1 or more, found 0.\n  Give a larger number, or none for all rows.",
        ),
        (
            {"test_limit": -1},
            "test_limit: expected 1 or more, found -1.\n  Give a larger number, or none for all rows.",
        ),
        ({"num_image_tokens": 0}, "num_image_tokens: expected 1 or more, found 0.\n  Give a larger number."),
        ({"max_seq_len": 0}, "max_seq_len: expected 1 or more, found 0.\n  Give a larger number."),
        ({"batch_size": 0}, "batch_size: expected 1 or more, found 0.\n  Give a larger number."),
        ({"num_workers": -1}, "num_workers: expected 0 or more, found -1.\n  Give a larger number."),
        (
            {"train_jsonl": "a.jsonl"},
            "train_jsonl is given (a.jsonl) and test_jsonl is not: validation and the tests whose predictions are "
            "explained come from a file of their own.\n  Give test_jsonl, a file of the same form.",
        ),
        (
            {"test_jsonl": "b.jsonl"},
            "test_jsonl is given and train_jsonl is not: without it the set that comes with ifloo is used.\n"
            "  Give train_jsonl too, or leave test_jsonl out.",
        ),
        (
            {"image_root": "images"},
            "image_root is given and train_jsonl is not: without it the set that comes with ifloo is used.\n"
            "  Give train_jsonl too, or leave image_root out.",
        ),
        (
            {"train_jsonl": "a.jsonl", "test_jsonl": "b.jsonl", "corrupt": 0.1},
            "corrupt: expected 0 for rows of one's own, found 0.1: only answers of the set that comes with ifloo are "
            "made wrong on purpose.\n  Leave corrupt out, or train_jsonl.",
        ),
        (
            {"train_jsonl": "a.jsonl", "test_jsonl": "b.jsonl", "fields": {"img": "image"}},
            "fields: expected names for some of image, conversations, from, value, messages, role, content, found "
            "'img'.\n  Write the name above on the left and that of your data on the right, as in {image: img}.",
        ),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], message: str):
    with pytest.raises(InputError) as caught:
        MultimodalDataModule(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"channels": 4}, "channels: expected one of 1, 3, found 4.\n  Choose one of these."),
        ({"dtype": "half"}, "dtype: expected one of float64, float32, found 'half'.\n  Choose one of these."),
        ({"on_bad_row": "warn"}, "on_bad_row: expected one of error, skip, found 'warn'.\n  Choose one of these."),
    ],
)
def test_a_setting_of_few_values(setting: dict[str, Any], message: str):
    with pytest.raises(InputError) as caught:
        check_settings(dict(MultimodalDataModule().hparams) | setting)
    assert str(caught.value) == message


def test_image_size():
    assert (canvas(28), canvas([4, 6])) == ((28, 28), (4, 6))
    for wrong in (0, [4], [4, 6, 3], [0, 6]):
        with pytest.raises(InputError) as caught:
            canvas(wrong)
        assert str(caught.value) == (
            f"image_size: expected a side or [height, width] in pixels, each 1 or more, found {wrong}.\n"
            "  28 is a square; [28, 56] is twice as wide as high."
        )


class Bias(L.LightningModule):
    """Learns one number: enough of a model to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def training_step(self, batch):
        return (batch["pixel_values"].mean((1, 2, 3, 4)) - self.bias).square().mean()

    def validation_step(self, batch):
        return self.training_step(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_checkpoint_loads_with_weights_only(own: dict[str, Any], tmp_path: Path):
    data = MultimodalDataModule(**own, tokenizer=ByteTokenizer(), fields={"image": "image"})
    trainer = L.Trainer(
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(Bias(), data)
    trainer.save_checkpoint(tmp_path / "base.pth")
    saved = torch.load(tmp_path / "base.pth", weights_only=True)["datamodule_hyper_parameters"]
    assert (saved["train_jsonl"], saved["image_size"], saved["fields"]) == (
        own["train_jsonl"],
        [4, 6],
        {"image": "image"},
    )
    assert "tokenizer" not in saved
    again = MultimodalDataModule.load_from_checkpoint(tmp_path / "base.pth", weights_only=True)
    assert ready(again).fingerprint() == data.fingerprint()
