"""The data module: which source is taken and why, limits, ids, loaders, and what it refuses."""

import gzip
import logging
import shutil
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from ifloo.data import MNISTDataModule
from ifloo.data.mnist import _one_of
from ifloo.data.source import EMBEDDED_ROOT, FourFiles
from ifloo.errors import InputError, WorkError

NAME = "train-images-idx3-ubyte"


@pytest.fixture
def offline(tiny: FourFiles, closed_port: str) -> type[MNISTDataModule]:
    """As MNISTDataModule, but the full files are the tiny ones and no mirror is there."""

    class Offline(MNISTDataModule):
        files = tiny
        mirrors = (closed_port,)

    return Offline


@pytest.fixture
def tiny_root(tmp_path: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


@pytest.fixture(scope="module")
def embedded() -> MNISTDataModule:
    data = MNISTDataModule(source="embedded")
    data.setup()
    return data


def ready(data: MNISTDataModule) -> MNISTDataModule:
    data.setup()
    return data


@pytest.mark.parametrize("layout", [".", "raw", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_in_root_come_first(offline, tmp_path: Path, contents, caplog, layout: str, zipped: bool):
    folder = tmp_path / layout
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    with caplog.at_level(logging.INFO, "ifloo"):
        data = ready(offline(root=str(tmp_path)))
        data.setup("fit")
    assert (data.source_taken, data.hparams["source"]) == ("full", "full")
    assert data.source_reason == f"the files are in {tmp_path}"
    assert caplog.record_tuples == [
        (
            "ifloo.data.mnist",
            logging.INFO,
            f"MNIST: 12 training and 5 test images of the full digits (source auto: the files are in {tmp_path})",
        )
    ]
    np.testing.assert_array_equal(data.train_set.images.numpy().tobytes(), contents[NAME][16:])


def test_what_root_lacks_is_downloaded(offline, tiny_root: Path, contents, mirror):
    (tiny_root / f"{NAME}.gz").unlink()
    mirror.set(f"{NAME}.gz", mirror.good(gzip.compress(contents[NAME])))
    offline.mirrors = (mirror.url,)
    data = ready(offline(root=str(tiny_root)))
    assert (data.source_taken, data.source_reason) == ("full", f"downloaded into {tiny_root}")
    assert mirror.asked == [f"/{NAME}.gz"]


def test_without_files_or_network_auto_takes_the_embedded_digits(offline, tmp_path: Path, closed_port, caplog):
    root = tmp_path / "mnist"
    data = ready(offline(root=str(root), train_limit=55_000))
    why = (
        f"the files are not in {root}; {NAME} could not be downloaded "
        f"({closed_port}{NAME}.gz: [Errno 111] Connection refused)"
    )
    assert (data.source_taken, data.source_reason, data.hparams["source"]) == ("embedded", why, "embedded")
    told = [(record.levelname, record.message) for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        ("WARNING", "train_limit is 55000, the train images are 5000: all of them are used"),
        ("WARNING", f"MNIST: 5000 training and 1000 test images of the embedded digits (source auto: {why})"),
    ]
    assert not root.exists()


def test_full_never_falls_back(offline, tmp_path: Path, closed_port):
    root = tmp_path / "mnist"
    with pytest.raises(InputError) as caught:
        offline(root=str(root), source="full").setup()
    assert str(caught.value) == (
        f"source full: {NAME} could not be downloaded ({closed_port}{NAME}.gz: [Errno 111] Connection refused).\n"
        f"  Check the network, or put the file, gzip or plain, into {root} yourself.\n"
        "  Or take the digits that come with ifloo: source embedded, 5,000 training and 1,000 test images."
    )


def test_a_process_that_does_not_download_still_looks(offline, tmp_path: Path):
    """Under a Trainer only one process per node prepares; the others' setup must not ask the mirrors again."""
    data = offline(root=str(tmp_path), source="full")
    data.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(InputError) as caught:
        data.setup("fit")
    assert str(caught.value) == (
        f"source full: not in {tmp_path}: {', '.join(file.name for file in offline.files)}.\n"
        "  Put the files there, gzip or plain, or take the digits that come with ifloo: "
        "source embedded, 5,000 training and 1,000 test images."
    )


def test_embedded_never_looks(offline, tiny_root: Path):
    assert len(ready(offline(root=str(tiny_root), source="embedded")).train_set) == 5000


def test_a_broken_file_in_root_is_an_error_not_a_reason_to_fall_back(offline, tiny_root: Path):
    shutil.copy(tiny_root / "t10k-images-idx3-ubyte.gz", tiny_root / f"{NAME}.gz")
    with pytest.raises(InputError) as caught:
        offline(root=str(tiny_root)).setup()
    train, test = offline.files.train_images.md5, offline.files.test_images.md5
    assert str(caught.value) == (
        f"{tiny_root}/{NAME}.gz: expected content with MD5 {train}, the published one, found {test}.\n"
        "  Put an intact copy there, or delete it to have it downloaded again."
    )


def test_a_root_that_is_a_file(tmp_path: Path):
    (tmp_path / "mnist.gz").touch()
    with pytest.raises(InputError) as caught:
        MNISTDataModule(root=str(tmp_path / "mnist.gz")).setup()
    assert str(caught.value) == (
        f"root: expected a folder for the MNIST files, found a file: {tmp_path}/mnist.gz.\n  Name its folder instead."
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"train_limit": 0},
            "train_limit: expected 1 or more, found 0.\n  Give a larger number, or none for all images.",
        ),
        (
            {"test_limit": -5},
            "test_limit: expected 1 or more, found -5.\n  Give a larger number, or none for all images.",
        ),
        ({"batch_size": 0}, "batch_size: expected 1 or more, found 0.\n  Give a larger number."),
        ({"num_workers": -1}, "num_workers: expected 0 or more, found -1.\n  Give a larger number."),
    ],
)
def test_settings_out_of_range(setting, message: str):
    with pytest.raises(InputError) as caught:
        MNISTDataModule(**setting)
    assert str(caught.value) == message


def test_a_setting_of_few_values():
    with pytest.raises(InputError) as caught:
        _one_of("source", "web", ("auto", "full", "embedded"))
    assert str(caught.value) == ("source: expected one of auto, full, embedded, found 'web'.\n  Choose one of these.")


def test_limits_keep_the_ids(embedded: MNISTDataModule):
    small = ready(MNISTDataModule(source="embedded", train_limit=40, test_limit=10, batch_size=16, shuffle=True))
    assert (len(small.train_set), len(small.test_set)) == (40, 10)
    batches = list(small.train_dataloader())
    ids = torch.cat([batch["idx"] for batch in batches])
    assert [len(batch["x"]) for batch in batches] == [16, 16, 8]
    assert sorted(ids.tolist()) == list(range(40)) != ids.tolist()
    for batch in batches:
        torch.testing.assert_close(batch["x"], embedded.train_set.x[batch["idx"]], rtol=0, atol=0)
    assert [batch["idx"].tolist() for batch in small.val_dataloader()] == [list(range(10))]


def test_a_batch_as_large_as_the_data_is_the_data(embedded: MNISTDataModule):
    (batch,) = embedded.train_dataloader()
    assert batch["x"].data_ptr() == embedded.train_set.x.data_ptr()
    assert {name: tuple(column.shape) for name, column in batch.items()} == {
        "x": (5000, 784),
        "labels": (5000,),
        "idx": (5000,),
    }


def test_batches_of_test_ids(embedded: MNISTDataModule):
    batch = embedded.test_batch([8, 0])
    assert (batch["idx"].tolist(), batch["labels"].tolist()) == ([8, 0], [5, 7])
    small = ready(MNISTDataModule(source="embedded", train_limit=10, test_limit=100))
    for data, id_, message in [
        (small, 100, "100: the 100 0..99 Choose another id, or raise test_limit to 101 or more (it is 100)."),
        (small, -1, "-1: the 100 0..99 Choose another id."),
        (
            embedded,
            9999,
            "9999: the 1000 0..999 Choose another id, or take the full files (source: full), which hold ids 0..9999.",
        ),
        (embedded, 10_000, "10000: the 1000 0..999 Choose another id."),
    ]:
        with pytest.raises(InputError) as caught:
            data.test_batch([0, id_])
        number, _, rest = message.partition(": the ")
        count, ids, step = rest.split(" ", 2)
        assert str(caught.value) == (
            f"test id {number} is out of range: the {count} test images in use have ids {ids}.\n  {step}"
        )


def test_fingerprint_tells_what_changes_numbers():
    def of(**settings) -> str:
        return ready(MNISTDataModule(source="embedded", **{"train_limit": 30, **settings})).fingerprint()

    assert of() == of(dtype="float32") == of(test_limit=3) == of(batch_size=7) == of(root="elsewhere")
    assert len({of(), of(train_limit=31), of(normalize=True)}) == 3
    assert MNISTDataModule.free_settings == {"root", "source", "test_limit", "num_workers"}


def test_data_before_setup():
    with pytest.raises(WorkError) as caught:
        MNISTDataModule().train_dataloader()
    assert str(caught.value) == "MNISTDataModule holds no data yet.\n  Call its setup() first (a Trainer does)."


class Mean(L.LightningModule):
    """Learns the mean image: enough of a model to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(784, dtype=torch.float64))

    def training_step(self, batch):
        return (batch["x"] - self.mean).square().mean()

    def validation_step(self, batch):
        return self.training_step(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated")  # Lightning 2.6 on torch 2.13
def test_checkpoint_records_the_source_taken_and_loads_with_weights_only(offline, tmp_path: Path):
    data = offline(root=tmp_path / "mnist", train_limit=20)
    trainer = L.Trainer(
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(Mean(), data)
    trainer.save_checkpoint(tmp_path / "base.pth")
    saved = torch.load(tmp_path / "base.pth", weights_only=True)["datamodule_hyper_parameters"]
    assert (saved["source"], saved["root"], saved["train_limit"]) == ("embedded", str(tmp_path / "mnist"), 20)
    again = MNISTDataModule.load_from_checkpoint(tmp_path / "base.pth", weights_only=True)
    assert ready(again).fingerprint() == data.fingerprint()


@pytest.mark.full
def test_the_full_files_and_that_the_embedded_ones_are_their_beginning(mnist_root: Path, embedded: MNISTDataModule):
    data = ready(MNISTDataModule(root=str(mnist_root), source="full", train_limit=55_000, dtype="float32"))
    assert (len(data.train_set), len(data.test_set)) == (55_000, 10_000)
    for whole, first in ((data.train_set, embedded.train_set), (data.test_set, embedded.test_set)):
        for name in ("images", "labels", "ids"):
            assert torch.equal(getattr(whole, name)[: len(first)], getattr(first, name))


def test_what_is_shipped_is_small_and_attributed():
    shipped = {path.name: path.stat().st_size for path in EMBEDDED_ROOT.iterdir()}
    assert len(shipped) == 5
    assert sum(shipped.values()) < 1 << 20
    text = (EMBEDDED_ROOT / "ATTRIBUTION.md").read_text()
    assert all(word in text for word in ("LeCun", "Cortes", "Burges", "CC BY-SA 3.0"))
