"""Which metrics, by their names, a refit does not have."""

import pytest

from ifloo.refit.waiting_schedule import is_of_validation

VALIDATION = "val_loss valLoss valloss val loss/val dev_loss loss/eval validation/acc lossVal ValAcc"
TRAINING = "train_val trainVal train/valid train_loss loss value value_loss interval evaluated device_loss"


@pytest.mark.parametrize("name", VALIDATION.split())
def test_metrics_of_validation(name):
    assert is_of_validation(name)


@pytest.mark.parametrize("name", TRAINING.split())
def test_metrics_of_training(name):
    assert not is_of_validation(name)
