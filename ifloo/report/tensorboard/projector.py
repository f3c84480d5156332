"""Data of TensorBoard's projector: projected gradients of training samples, with columns to colour and label them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ifloo.data.protocol import CaptionedSet, ConversationSet
from ifloo.report.figures.conversation_gallery import pictures_of
from ifloo.report.safe_text import one_line
from ifloo.report.tensorboard.gradient_projection import SampleGradients
from ifloo.store import StoredInfluences, replacing

log = logging.getLogger(__name__)
TAG = "sample_gradients"
CONFIG = "projector_config.pbtxt"
MOST_POINTS = 2000  # more would make a browser slow to rotate, and would not fit on the sheet of images
LEAST_POINTS = 100
NUMBERS = 4_000_000_000  # largest number of gradient entries computed: a large model has fewer points, to save time
_TILE = 48  # largest side of an image, pixels
_MOST_TEXT = 80  # largest length of a caption, characters


@dataclass(frozen=True)
class Points:
    """Choice of the training samples to show.

    Attributes:
        positions: Positions of the chosen samples among all n, `[k]`, increasing.
        top: Number of samples of largest |s| of each test that are always included.
        n: Number of all training samples.
    """

    positions: NDArray[np.int64]
    top: int
    n: int

    @property
    def note(self) -> str:
        """Sentence that describes the choice, for the reader."""
        if len(self.positions) == self.n:
            return f"All {self.n} training samples."
        return (
            f"{len(self.positions)} of {self.n} training samples: the {self.top} of largest |s| of each test, and "
            "others drawn at random (seed 0)."
        )


def points(stored: Sequence[StoredInfluences], most: int, seed: int = 0) -> Points:
    """Chooses at most `most` samples: half of them for the largest |s| of the tests, the others at random."""
    n = len(stored[0].train_ids)
    if n <= most:
        return Points(np.arange(n), n, n)
    each = most // (2 * len(stored))
    top = [np.argsort(-np.abs(one.scores), kind="stable")[:each] for one in stored]
    certain = np.unique(np.concatenate([np.empty(0, np.int64), *top]))
    others = np.setdiff1d(np.arange(n), certain)
    drawn = np.random.default_rng(seed).choice(others, most - len(certain), replace=False)
    return Points(np.sort(np.concatenate([certain, drawn])), each, n)


def point_limit(size: int) -> int:
    """Returns the largest number of points for a model of `size` parameters."""
    return max(LEAST_POINTS, min(MOST_POINTS, NUMBERS // size))


def metadata(
    stored: Sequence[StoredInfluences],
    further: Mapping[str, NDArray[np.float64]],
    data: CaptionedSet | ConversationSet,
    chosen: Points,
) -> tuple[list[str], list[list[str]]]:
    """Returns column names and a row for each point: id, caption, scores, their percentiles, further rankings.

    Scores are heavy-tailed: coloured by score, all but a few points have the colour of zero; percentiles distinguish
    them.

    Args:
        stored: Scores of each test.
        further: Further rankings of all n training samples by name, `[n]` each.
        data: Training set, for captions.
        chosen: Samples to show.
    """
    at = chosen.positions
    ids = stored[0].train_ids[at].tolist()
    columns: dict[str, list[str]] = {
        "id": [str(i) for i in ids],
        "caption": [one_line(_caption(data, i), _MOST_TEXT) for i in ids],
    }
    for one in stored:
        columns[f"score_test_{one.test_id}"] = [f"{score:.6g}" for score in one.scores[at].tolist()]
        percentiles = 100 * _ranks(one.scores) / max(1, chosen.n - 1)
        columns[f"percentile_test_{one.test_id}"] = [f"{x:.4g}" for x in percentiles[at].tolist()]
    for name, ranking in further.items():
        columns[name] = [f"{x:.6g}" for x in ranking[at].tolist()]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _ranks(values: NDArray[np.floating]) -> NDArray[np.int64]:
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks


def _caption(data: CaptionedSet | ConversationSet, id_: int) -> str:
    if isinstance(data, ConversationSet):
        return f"{data.question(id_)} {data.answer(id_)}"
    return data.caption(id_)


def tiles(data: CaptionedSet | ConversationSet, ids: Sequence[int]) -> Tensor | None:
    """Returns an image of each sample, `[k, 3, s, s]` in 0..1, blank for a sample without one; None if none has one.

    Grey images are inverted to dark on light, because the projector multiplies them by the colour of the point.
    """
    pictures = [next(iter(pictures_of(data, i)), None) for i in ids]
    sides = [max(picture.shape[:2]) for picture in pictures if picture is not None]
    if not sides:
        return None
    side = min(_TILE, max(sides))
    return torch.stack([_tile(picture, side) for picture in pictures])


def _tile(picture: NDArray[np.uint8] | None, side: int) -> Tensor:
    sheet = Image.new("RGB", (side, side), "white")
    if picture is not None:
        array = np.ascontiguousarray(255 - picture if picture.ndim == 2 else picture)
        image = Image.fromarray(array).convert("RGB")
        share = side / max(image.size)
        if share != 1:
            size = tuple(max(1, round(x * share)) for x in image.size)
            image = image.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]
        sheet.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).float() / 255


def write(
    writer: SummaryWriter,
    folder: Path,
    gradients: SampleGradients,
    stored: Sequence[StoredInfluences],
    further: Mapping[str, NDArray[np.float64]],
    data: CaptionedSet | ConversationSet,
) -> Points:
    """Writes the points of the projector, replacing those of an earlier report; other embeddings are kept.

    Returns:
        The samples shown.

    Raises:
        InputError: If the training data are not those that were scored.
    """
    chosen = points(stored, point_limit(gradients.size))
    ids = stored[0].train_ids[chosen.positions]
    vectors = gradients.projected(torch.from_numpy(chosen.positions), torch.from_numpy(ids))
    head, rows = metadata(stored, further, data, chosen)
    others = _others(folder / CONFIG)
    if (old := folder / "00000" / TAG).is_dir():
        shutil.rmtree(old)
    writer.add_embedding(
        vectors, metadata=rows, metadata_header=head, label_img=tiles(data, ids.tolist()), global_step=0, tag=TAG
    )
    config = ProjectorConfig()
    text_format.Parse((folder / CONFIG).read_text(encoding="utf-8"), config)
    config.embeddings.extend(others)
    with replacing(folder / CONFIG) as file:
        file.write(text_format.MessageToString(config).encode())
    return chosen


def _others(config: Path) -> list[EmbeddingInfo]:
    """Reads the embeddings of this folder that ifloo did not write."""
    existing = ProjectorConfig()
    if config.exists():
        try:
            text_format.Parse(config.read_text(encoding="utf-8"), existing)
        except (text_format.ParseError, UnicodeDecodeError) as error:
            log.warning("%s cannot be read (%s) and is replaced.", config, error)
            return []
    return [one for one in existing.embeddings if not one.tensor_path.startswith(f"00000/{TAG}/")]
