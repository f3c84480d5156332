"""The first argument of `__init__` is the object itself, whatever its author calls it."""

import lightning as L

from ifloo.data import second_setup


class Module(L.LightningDataModule):
    def __init__(s, size: int = 3) -> None:  # ruff: ignore[invalid-first-argument-name-for-method]  # the name is the case
        super().__init__()
        s.save_hyperparameters({"size": size})


def test_arguments_that_a_data_module_saves() -> None:
    assert second_setup._saved_arguments(Module(5)) == {"size": 5}
