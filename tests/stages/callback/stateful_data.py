"""Data whose reads change something: a generator, a counter, a cache, the position in a file."""

import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tests.stages.callback.fits import N, samples

OF_THE_FILE = torch.Generator().manual_seed(5)


class Noisy(Dataset[Any]):
    """Adds to each sample a number that depends on what was read before."""

    def __init__(self, noise: Callable[[], float]) -> None:
        self.base, self.noise = samples(N), noise

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = self.base[i]
        return x + self.noise(), y


class Attributes(Noisy):
    """Has the state in attributes of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__(self.drawn)
        self.kind, self.count, self.seen = kind, 0, list[int]()
        self.numpy, self.python, self.torch = np.random.default_rng(0), random.Random(0), torch.Generator()

    def drawn(self) -> float:
        self.count += 1
        self.seen.append(self.count)
        draws = {
            "numpy": self.numpy.normal,
            "python": self.python.random,
            "torch": lambda: float(torch.randn((), generator=self.torch)),
            "counter": lambda: self.count / 100,
            "cache": lambda: len(self.seen) % 7,
        }
        return draws[self.kind]()


class OfTheClass(Noisy):
    """Counts in its class."""

    count = 0

    def __init__(self) -> None:
        super().__init__(self.counted)
        OfTheClass.count = 0

    @classmethod
    def counted(cls) -> float:
        cls.count += 1
        return cls.count / 100


def closure_generator() -> Noisy:
    draw = torch.Generator().manual_seed(3)
    return Noisy(lambda: float(torch.randn((), generator=draw)))


def closure_counter() -> Noisy:
    count = itertools.count()
    return Noisy(lambda: next(count) / 100)


def default_argument() -> Noisy:
    own = random.Random(1)

    def drawn(draw: random.Random = own) -> float:
        return draw.random()

    return Noisy(drawn)


def module_global() -> Noisy:
    OF_THE_FILE.manual_seed(5)
    return Noisy(lambda: float(torch.randn((), generator=OF_THE_FILE)))


def open_file() -> Noisy:
    file, path = tempfile.mkstemp()
    os.write(file, bytes(k % 251 for k in range(100_000)))
    os.lseek(file, 0, os.SEEK_SET)
    os.unlink(path)
    return Noisy(lambda: os.read(file, 1)[0] / 100)


KINDS: dict[str, Callable[[], Noisy]] = {
    **{kind: lambda kind=kind: Attributes(kind) for kind in ("numpy", "python", "torch", "counter", "cache")},  # type: ignore[misc]
    "class": OfTheClass,
    "closure generator": closure_generator,
    "closure counter": closure_counter,
    "default argument": default_argument,
    "global": module_global,
    "file": open_file,
}


class OwnOrder(Sampler[int]):
    """Draws each order by a counter in a closure."""

    def __init__(self) -> None:
        count = itertools.count()
        self.next = lambda: next(count)

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(N, generator=torch.Generator().manual_seed(self.next())).tolist())


def collate_with_counter() -> Callable[[Any], Any]:
    count = itertools.count()

    def collate(rows: Any) -> Any:
        x, y = zip(*rows, strict=True)
        return torch.stack(x) + next(count) / 100, torch.stack(y)

    return collate


def loaders(kind: str) -> DataLoader[Any]:
    """Returns a new loader of one kind."""
    if kind == "sampler":
        return DataLoader(samples(N), batch_size=8, sampler=OwnOrder())
    if kind == "collate":
        return DataLoader(samples(N), batch_size=8, shuffle=True, collate_fn=collate_with_counter())
    if kind == "workers":
        return DataLoader(Attributes("numpy"), batch_size=8, shuffle=True, num_workers=1)
    if kind == "persistent workers":
        return DataLoader(Attributes("numpy"), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
    return DataLoader(KINDS[kind](), batch_size=8, shuffle=True)
