"""Random splits: held to those of the fit or of the first call, and found by a second set-up."""

import random

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, random_split

from ifloo.data import AdaptedData, FitRecord
from ifloo.data.second_setup import SecondSetup
from ifloo.errors import InputError
from ifloo.objective.loaders import training_dataset

BASE = TensorDataset(torch.arange(40.0))


class Module(L.LightningDataModule):
    """A data module that draws its split where a subclass says."""

    def __init__(self, n: int = 30, generator: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()

    def split(self):
        generator = torch.Generator().manual_seed(0) if self.hparams.generator else None
        return random_split(BASE, [self.hparams.n, 40 - self.hparams.n], generator)

    def train_dataloader(self):
        return DataLoader(self.parts[0], batch_size=5, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.parts[1], batch_size=5)


class InSetup(Module):
    def setup(self, stage):
        self.parts = self.split()


class InConstructor(Module):
    def __init__(self, n: int = 30, generator: bool = False) -> None:
        super().__init__(n, generator)
        self.save_hyperparameters()
        self.parts = self.split()


class InLoader(Module):
    def train_dataloader(self):
        self.parts = self.split()
        return super().train_dataloader()


class Shuffled(Module):
    """No Subset: rows shuffled by numpy."""

    def setup(self, stage):
        rows = np.random.permutation(40)
        self.parts = [TensorDataset(torch.as_tensor(part, dtype=torch.float32)) for part in (rows[:30], rows[30:])]


class OwnList(Module):
    """Arguments that are not saved, so that it is copied; the constructor keeps a list that setup shuffles in place."""

    def __init__(self, rows):
        L.LightningDataModule.__init__(self)
        self.rows = rows

    def setup(self, stage):
        random.shuffle(self.rows)
        self.parts = [Subset(BASE, self.rows[:30]), Subset(BASE, self.rows[30:])]


def random_of(data):
    adapted = AdaptedData(data)
    adapted.prepare_second_setup()
    adapted.setup("fit")
    return adapted.split_is_random()


@pytest.mark.parametrize("kind", [InSetup, InConstructor, InLoader, Shuffled])
def test_a_second_setup_finds_a_random_split(kind):
    assert random_of(kind())


def test_a_second_setup_leaves_random_numbers_as_they_were():
    second, loader = SecondSetup(InSetup()), DataLoader(BASE)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    assert second.differs(loader)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("kind", [InSetup, InConstructor, InLoader])
def test_a_split_by_a_generator_is_no_random_one(kind):
    assert not random_of(kind(generator=True))


def test_what_setup_changes_in_place_stays():
    rows = list(range(40))
    random.seed(0)
    assert random_of(OwnList(rows))
    kept = list(rows)
    assert SecondSetup(OwnList(rows)).differs(DataLoader(Subset(BASE, range(30))))
    assert rows == kept


def test_a_data_module_that_cannot_be_set_up_twice_is_not_compared():
    class Once(InSetup):
        calls = 0

        def setup(self, stage):
            Once.calls += 1
            if Once.calls > 1:
                raise RuntimeError
            super().setup(stage)

    assert not random_of(Once())


class WithinModule(L.LightningModule):
    """A module that holds its data itself, as small projects do."""

    def setup(self, stage):
        self.parts = random_split(BASE, [30, 10])

    def train_dataloader(self):
        return DataLoader(self.parts[0], batch_size=5)


def test_a_module_that_splits_its_own_data_is_compared_too():
    module = WithinModule()
    data = AdaptedData(module)
    data.prepare_second_setup()
    module.setup("fit")
    data.setup("fit")
    assert data.split_is_random()


def test_a_function_that_splits_is_called_again():
    def make():
        part, _ = random_split(BASE, [30, 10])
        data = L.LightningDataModule()
        data.train_dataloader = lambda: DataLoader(part, batch_size=5)
        return data

    data = AdaptedData(make())
    data.prepare_second_setup(make)
    data.setup("fit")
    assert data.split_is_random()


def test_a_split_drawn_in_the_method_of_the_loader_is_that_of_the_first_call():
    data = AdaptedData(InLoader())
    data.setup("fit")
    loaders = [data.train_dataloader() for _ in range(2)]
    first, second = (sorted(training_dataset(one).indices) for one in loaders)
    assert first == second
    assert sorted(torch.cat([b.batch[0] for b in loaders[1]]).int().tolist()) == first


def test_rows_of_a_record_are_held_by_training_and_by_scores():
    torch.manual_seed(1)
    fitted = InSetup()
    fitted.setup("fit")
    record = FitRecord.of(fitted.train_dataloader(), {"val": fitted.val_dataloader()})
    torch.manual_seed(2)
    data = AdaptedData(InSetup())
    data.setup("fit")
    _ = data.train_set  # read before the record is known
    data.hold_to(record)
    expected = BASE.tensors[0][fitted.parts[0].indices]
    assert torch.equal(torch.cat([b[0] for b in data.train_set.contents()]), expected)
    assert torch.equal(torch.cat([b[0] for b in data.test_set.contents()]), BASE.tensors[0][fitted.parts[1].indices])
    drawn = torch.cat([b.batch[0] for b in data.train_dataloader()])
    assert torch.equal(drawn.sort()[0], expected.sort()[0])


def test_tests_that_were_trained_on_are_refused():
    """The record holds no rows of the validation set, and the present split is another one."""
    torch.manual_seed(1)
    fitted = InSetup()
    fitted.setup("fit")
    record = FitRecord.of(fitted.train_dataloader())
    torch.manual_seed(2)
    data = AdaptedData(InSetup())
    data.hold_to(record)
    with pytest.raises(InputError) as caught:
        _ = data.test_set
    shared = len(set(data.data.parts[1].indices) & set(fitted.parts[0].indices))
    assert str(caught.value) == (
        f"InSetup.val_dataloader: {shared} of 10 samples are among those trained on: the split is another one than "
        "that of the fit, whose checkpoint records the rows of the training set and not of this one.\n"
        "  Give the seed of the fit (`lightning.seed_everything`), or a generator in random_split. "
        "A fit with InfluenceCallback, or by `ifloo fit`, records its split."
    )


class Nested(Module):
    """Tests split off first, validation from the rest, as tutorials do."""

    def setup(self, stage):
        rest, tests = random_split(BASE, [30, 10])
        self.parts = [*random_split(rest, [25, 5]), tests]

    def test_dataloader(self):
        return DataLoader(self.parts[2], batch_size=5)


class Joined(Module):
    """Training on parts of two data sets, tests from the second."""

    def setup(self, stage):
        first, second = Subset(BASE, range(20)), TensorDataset(BASE.tensors[0] + 100)
        train, tests = random_split(second, [30, 10])
        self.parts = [ConcatDataset([first, train]), tests]


class MadeAgain(Nested):
    """The data set is made at each set-up, so that no two are one object."""

    def setup(self, stage):
        rest, tests = random_split(TensorDataset(BASE.tensors[0].clone()), [30, 10])
        self.parts = [rest, tests, Subset(TensorDataset(BASE.tensors[0].clone()), tests.indices)]


def held_to_another_split(kind):
    """Data under seed 2, held to a record of the training rows alone under seed 1; and both."""
    data = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        data.append(kind())
        data[-1].setup("fit")
    adapted = AdaptedData(data[1])
    adapted._ready |= {"fit", "test"}  # set up above, under seed 2
    adapted.hold_to(FitRecord.of(data[0].train_dataloader()))
    return adapted, *data


def values(dataset):
    return {float(dataset[i][0]) for i in range(len(dataset))}


@pytest.mark.parametrize(("kind", "part"), [(Nested, 2), (Joined, 1), (MadeAgain, 2)])
def test_tests_of_a_compound_split_that_were_trained_on_are_refused(kind, part):
    data, fitted, now = held_to_another_split(kind)
    shared = len(values(now.parts[part]) & values(fitted.parts[0]))
    assert shared
    with pytest.raises(InputError, match=f": {shared} of 10 samples are among those trained on"):
        _ = data.test_set


class TwoSets(Module):
    """Two data sets of one class and size, each split: the same rows are other samples."""

    def setup(self, stage):
        other = TensorDataset(BASE.tensors[0] + 100)
        self.parts = [random_split(BASE, [30, 10])[0], random_split(other, [30, 10])[0]]


def test_rows_of_another_data_set_of_the_same_size_were_not_trained_on():
    data, _, now = held_to_another_split(TwoSets)
    assert len(data.test_set.ids) == len(now.parts[1])


class Chosen(Nested):
    def val_dataloader(self):
        return {"a": DataLoader(self.parts[1]), "b": DataLoader(self.parts[2])}


class ChosenAlone(Chosen):
    test_dataloader = L.LightningDataModule.test_dataloader


def test_rows_of_several_validation_loaders_are_held():
    torch.manual_seed(1)
    fitted = AdaptedData(ChosenAlone())
    fitted.setup("fit")
    evaluation = fitted.evaluation_loaders()
    assert set(evaluation) == {"val.a", "val.b"}
    record = FitRecord.of(fitted.data.train_dataloader(), evaluation)
    torch.manual_seed(2)
    data = AdaptedData(ChosenAlone(), test_loader="b")
    data.hold_to(record)
    held = {float(x) for batch in data.test_set.contents() for x in batch[0]}
    assert held == values(fitted.data.parts[2])


def test_a_split_of_other_sizes_cannot_be_held():
    fitted = InSetup()
    fitted.setup("fit")
    record = FitRecord.of(fitted.train_dataloader())
    data = AdaptedData(InSetup(n=29))
    data.hold_to(record)
    with pytest.raises(InputError) as caught:
        _ = data.train_set
    assert str(caught.value) == (
        "InSetup.train_dataloader: the rows of the fit cannot be applied to these data: it has Subsets of [29] rows, "
        "the fit had Subsets of [30] rows.\n"
        "  Give the data of the fit with the same settings, or fit again."
    )
