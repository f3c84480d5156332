"""The projects of the gallery that can be scored: how their authors train them, and what is scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset

from ifloo.stages import InfluenceCallback
from tests.gallery.dense import Dense, singles
from tests.gallery.doubles import doubled, doubled_loader, doubled_model

QUERIES = 2
IN_32_BITS = 1e-4  # of the largest score; transformers computes the loss of a language model in 32 bits at any weights


@dataclass(frozen=True)
class Exhibit:
    """A project of the gallery.

    Attributes:
        module: File of the project in this folder.
        make: Function of that file's module that returns module and data module; None for data inside the module.
        logits: Layer whose output is the logits; None if there is none of its own.
        parameters: Patterns of the parameters for which the whole curvature is held against truth.
        damping: Damping for these parameters, nats per squared parameter.
        fit: Settings of the Trainer.
        callbacks: Function that makes the author's own callbacks.
        factors: Function of the training samples that returns n c_i, where batch means are weighted.
        clean: Function like `make` without augmentation; None if there is none.
        lightning: Package of the Trainer.
        rounding: Largest error in memory in 64 bits, relative to the largest score.
    """

    module: str
    make: Callable[[Any], tuple[Any, Any]]
    logits: str | None
    parameters: Sequence[str] = ("*",)
    damping: float = 1.0
    fit: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Any]] = list
    factors: Callable[[Sequence[Any]], Tensor] | None = None
    clean: Callable[[Any], Any] | None = None
    lightning: str = "lightning"
    rounding: float = 1e-9

    def project(self) -> Any:
        """Imports the project; without the packages that it needs the test is skipped."""
        if self.module == "language":
            for package in ("transformers", "peft"):
                pytest.importorskip(package)
        pytest.importorskip("pytorch_lightning")
        return import_module(f"tests.gallery.{self.module}")

    def trained(self, folder: Path, scored: bool = False, **settings: Any) -> "Trained":
        """Trains the project as its author does; `scored` adds an InfluenceCallback with its defaults."""
        L.seed_everything(3)
        model, data = self.make(self.project())
        own = model if data is None else data
        own.setup("fit")
        loaders = own.val_dataloader()
        queries = loaders[0] if isinstance(loaders, list) else loaders
        added = [InfluenceCallback(queries, num_queries=QUERIES, output_dir=folder / "influence")] if scored else []
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = import_module(self.lightning).Trainer(
            **{"max_epochs": 3, "accelerator": "cpu", "enable_model_summary": False, **quiet, **self.fit, **settings},
            callbacks=[*added, *self.callbacks()],
            default_root_dir=folder,
        )
        trainer.fit(model, datamodule=data)
        trainer.save_checkpoint(folder / "last.ckpt")
        return Trained(self, folder, model, own, queries)


@dataclass(frozen=True)
class Trained:
    """A trained project, the loader of its test samples, and the folder of its callback's scores and its checkpoint."""

    exhibit: Exhibit
    folder: Path
    model: Any
    data: Any
    queries: Any

    def loader(self) -> Any:
        """Returns the training loader in 64 bits, without augmentation."""
        clean = self.exhibit.clean
        data = self.data if clean is None else clean(self.exhibit.project())
        return doubled_loader(data.train_dataloader())

    def tests(self) -> list[Any]:
        return [doubled(one) for one in singles(self.queries)[:QUERIES]]

    @property
    def test_ids(self) -> list[int]:
        """Ids of the test samples: rows of the whole set where the author has split it."""
        data = self.queries.dataset
        rows = data.indices if isinstance(data, Subset) else range(len(data))
        return [int(row) for row in rows[:QUERIES]]

    def dense(self, parameters: Sequence[str]) -> Dense:
        """Returns dense truth in 64 bits at the weights that the fit ended with."""
        train = singles(self.loader())
        factors = None if self.exhibit.factors is None else self.exhibit.factors(train)
        return Dense(doubled_model(self.model), train, parameters=parameters, factors=factors)


def valid(samples: Sequence[Any], labels: Callable[[Any], Tensor], ignored: int, shift: int = 0) -> Tensor:
    """Returns n c_i of a mean over the labels that are not ignored."""
    counts = torch.tensor([int((labels(one)[..., shift:] != ignored).sum()) for one in samples], dtype=torch.float64)
    return len(counts) * counts / counts.sum()


def _averages(kind: str) -> list[Any]:
    from lightning.pytorch import callbacks

    if kind == "ema":
        return [callbacks.EMAWeightAveraging(decay=0.9)]
    return [callbacks.StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=1)]


ADAPTED_HEAD = "model.base_model.model.classifier.modules_to_save.default"
CLASSIFIER = Exhibit("classifier", lambda p: (p.Net(), p.Data()), "backbone.second")
EXHIBITS: dict[str, Exhibit] = {
    "classifier": CLASSIFIER,
    "data in the module": Exhibit("own_data", lambda p: (p.Net(), None), "model.4"),
    "composed": Exhibit("composed", lambda p: p.make(), "net.model.3"),
    "compiled": Exhibit("composed", lambda p: p.make_compiled(), "net._orig_mod.model.3"),
    "BERT": Exhibit(
        "language",
        lambda p: (p.Bert(), p.Data()),
        "model.classifier",
        ["model.classifier.*", "model.bert.pooler.dense.bias"],
    ),
    "BERT by LoRA": Exhibit("language", lambda p: (p.Bert(lora=True), p.Data()), ADAPTED_HEAD),
    "GPT-2": Exhibit(
        "language",
        lambda p: (p.Gpt2(), p.LanguageData()),
        None,
        ["model.transformer.ln_f.*", "model.transformer.h.0.mlp.c_proj.bias"],
        factors=lambda train: valid(train, lambda one: one["labels"], -100, shift=1),
        rounding=IN_32_BITS,
    ),
    "GPT-2 by LoRA": Exhibit(
        "language",
        lambda p: (p.Gpt2(lora=True), p.LanguageData()),
        None,
        factors=lambda train: valid(train, lambda one: one["labels"], -100, shift=1),
        rounding=IN_32_BITS,
    ),
    "tagger": Exhibit(
        "sequences",
        lambda p: (p.Tagger(), p.TaggerData()),
        "hidden2tag",
        ["hidden2tag.*", "lstm.bias_*"],
        factors=lambda train: valid(train, lambda one: one[1], -1),
    ),
    "forecaster": Exhibit(
        "sequences",
        lambda p: (p.Forecaster(), p.ForecasterData()),
        "output_layer",
        ["output_layer.*", "group.*", "encoder.bias_*"],
    ),
    "graphs": Exhibit("graphs", lambda p: (p.Net(), p.Data()), "lin"),
    "U-Net": Exhibit(
        "images",
        lambda p: (p.UNet(), p.ShapesData()),
        "out",
        ["out.*", "joined.1.*", "up.bias"],
        factors=lambda train: valid(train, lambda one: one[1].flatten(1), 250),
    ),
    "ResNet": Exhibit(
        "images",
        lambda p: (p.LitResNet(width=2, blocks=(1, 1)), p.PicturesData()),
        "model.fc",
        ["model.fc.*", "model.bn1.*"],
        clean=lambda p: p.PicturesData(augment=False),
    ),
    "factorisation": Exhibit("plain", lambda p: (p.MatrixFactorization(9, 7), p.Ratings()), None),
    "two loaders": Exhibit("plain", lambda p: (p.TwoLoaders(), p.TwoLoadersData()), "backbone.second"),
    "pytorch_lightning": Exhibit(
        "plain", lambda p: (p.Older(), p.OlderData()), "layer", damping=0.0, lightning="pytorch_lightning"
    ),
    "EMA": Exhibit("classifier", CLASSIFIER.make, "backbone.second", callbacks=lambda: _averages("ema")),
    "SWA": Exhibit("classifier", CLASSIFIER.make, "backbone.second", callbacks=lambda: _averages("swa")),
}
