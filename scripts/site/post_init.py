"""Errors of `__post_init__`, which checks the settings of a dataclass, shown with the class in the API reference."""

from __future__ import annotations

import inspect

import griffe


class PostInit(griffe.Extension):
    """Moves the section `Raises:` of `__post_init__` to the docstring of its class."""

    def on_class(self, *, cls: griffe.Class, **unused: object) -> None:
        """Appends the section, if there is one."""
        check = cls.members.pop("__post_init__", None)
        if check is None or check.docstring is None or cls.docstring is None:
            return
        _, found, raises = inspect.cleandoc(check.docstring.value).partition("\nRaises:\n")
        if found and "\nRaises:\n" not in cls.docstring.value:
            cls.docstring.value = f"{cls.docstring.value}\n\nRaises:\n{raises}"
