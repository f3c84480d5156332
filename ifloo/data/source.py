"""The four MNIST files: their names, checksums and possible places on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from ifloo.data.idx import FETCH_AGAIN, IdxFile, read_idx
from ifloo.errors import InputError

SourceSetting = Literal["auto", "full", "embedded"]
Taken = Literal["full", "embedded"]
EMBEDDED_ROOT = Path(__file__).parent / "embedded"
LAYOUTS = (".", "raw", "MNIST/raw")  # the files directly in root; torchvision's dataset folder; torchvision's root


class FourFiles(NamedTuple):
    train_images: IdxFile
    train_labels: IdxFile
    test_images: IdxFile
    test_labels: IdxFile


def _four(train_images: str, train_labels: str, test_images: str, test_labels: str) -> FourFiles:
    return FourFiles(
        IdxFile("train-images-idx3-ubyte", 3, train_images),
        IdxFile("train-labels-idx1-ubyte", 1, train_labels),
        IdxFile("t10k-images-idx3-ubyte", 3, test_images),
        IdxFile("t10k-labels-idx1-ubyte", 1, test_labels),
    )


# MD5 of the uncompressed content, as published; the compressed bytes differ between distributions.
FULL = _four(
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
)
EMBEDDED = _four(
    "6f01f69da69dedc2c8bc8526d38da71b",
    "10803020b92ddef7969be21e3eb2c75c",
    "bac4371a484d0b5651e81d99305acb5a",
    "556860b2f10365a8f7444c1e79c7e9af",
)


@dataclass(frozen=True)
class Source:
    """Source of the digits.

    Attributes:
        taken: Name of the source.
        reason: Reason why this source was chosen, for messages.
        files: The four published files.
        paths: Paths of the four files, in the same order.
    """

    taken: Taken
    reason: str
    files: FourFiles
    paths: tuple[Path, ...]

    def read(self) -> tuple[UInt8[Tensor, "..."], ...]:
        """Reads training images and labels, test images and labels.

        Raises:
            InputError: If a file is missing, truncated, corrupt, or not the published one.
        """
        remedy = FETCH_AGAIN if self.taken == "full" else "ifloo's own files are damaged: install it again."
        return tuple(
            torch.from_numpy(read_idx(path, file.ndim, file.md5, remedy).copy())
            for path, file in zip(self.paths, self.files, strict=True)
        )


def embedded(reason: str) -> Source:
    """Returns the source of the first 5,000 training and the first 1,000 test images, which come with ifloo."""
    return Source("embedded", reason, EMBEDDED, tuple(EMBEDDED_ROOT / f"{file.name}.gz" for file in EMBEDDED))


def full(root: Path, reason: str, files: FourFiles) -> Source | None:
    """Returns the source of the full files in `root`, or None if one of them is missing."""
    paths = [path for file in files if (path := _find(root, file))]
    return Source("full", reason, files, tuple(paths)) if len(paths) == len(files) else None


def missing(root: Path, files: FourFiles) -> list[IdxFile]:
    """Lists the files that `root` lacks.

    Raises:
        InputError: If `root` is not a folder.
    """
    if root.exists() and not root.is_dir():
        raise InputError(
            f"root: expected a folder for the MNIST files, found a file: {root}.\n  Name its folder instead."
        )
    return [file for file in files if _find(root, file) is None]


def _find(root: Path, file: IdxFile) -> Path | None:
    candidates = (root / layout / name for layout in LAYOUTS for name in (file.name, f"{file.name}.gz"))
    return next((path for path in candidates if path.is_file()), None)
