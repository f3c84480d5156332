"""Models and data with something wrong with them, named on the command line by class path."""

import torch
from torch import Tensor

from ifloo.data import MNISTDataModule
from ifloo.models import LogisticRegression


class Saddle(LogisticRegression):
    """J falls without end: its Hessian is that of the losses less 100 I."""

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
    """The digits with one NaN among them."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train_set.x[3, 400] = torch.nan
