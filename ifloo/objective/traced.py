"""Mask code of transformers under transforms, where it must read no values of tensors, as when it is traced."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType

_MODULE, _QUESTION = "transformers.masking_utils", "is_tracing"


@contextmanager
def traced_masks() -> Generator[None, None, None]:
    """Lets transformers skip shortcuts that depend on the values of a mask, until exit.

    The masks are the same; only the shortcut of leaving out a mask of ones is not taken. Where the function that is
    replaced does not exist, nothing is changed, and losses that read values are computed one by one.
    """
    module: ModuleType | None = sys.modules.get(_MODULE)
    if module is None or not callable(vars(module).get(_QUESTION)):
        yield
        return
    before = vars(module)[_QUESTION]
    vars(module)[_QUESTION] = lambda *_, **__: True
    try:
        yield
    finally:
        vars(module)[_QUESTION] = before
