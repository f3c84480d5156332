"""Models and data modules with one fault each, given on the command line by class path."""

import torch
from torch import Tensor

from ifloo.data import MNISTDataModule
from ifloo.models import LogisticRegression


class Saddle(LogisticRegression):
    """A model whose J is unbounded below: its Hessian is that of the losses minus 100 I."""

    def penalty(self) -> Tensor:
        return -50.0 * self.linear.weight.square().sum()

    def strong_convexity(self) -> float | None:
        return None


class OtherPixels(MNISTDataModule):
    """The digits with one pixel of one image changed."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train_set.images[5, 14, 14] ^= 1


class NotANumber(MNISTDataModule):
    """The digits with one NaN."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train_set.x[3, 400] = torch.nan
