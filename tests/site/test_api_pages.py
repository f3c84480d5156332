"""The pages of the API reference name every public name, without a tool that builds a site."""

import importlib
import pkgutil
import re

import ifloo
from scripts.site.api_pages import Module, modules, pages

REFERENCE = re.compile(r"^::: (ifloo\.[\w.]+)$", re.MULTILINE)


def exported() -> dict[str, object]:
    """Every name in an `__all__` of ifloo by its dotted path, and the object behind it."""
    found = {}
    for info in pkgutil.walk_packages(ifloo.__path__, "ifloo."):
        if info.ispkg or (info.name.count(".") == 1 and not info.name.endswith("__main__")):
            module = importlib.import_module(info.name)
            found |= {f"{info.name}.{name}": getattr(module, name) for name in getattr(module, "__all__", ())}
    return found


def test_every_exported_name_has_its_place():
    shown = set(REFERENCE.findall("\n".join(pages().values())))
    names = exported()
    assert len(names) > 150
    missing = {path: value for path, value in names.items() if path not in shown}
    outer = {path: path.rpartition(".") for path in missing}
    again = {path for path, (module, _, name) in outer.items() if _in_an_outer_package(module, name, shown)}
    assert set(missing) == again


def _in_an_outer_package(module: str, name: str, shown: set[str]) -> bool:
    """Whether the name is shown as one of a package around its own."""
    parts = module.split(".")
    return any(".".join([*parts[:depth], name]) in shown for depth in range(2, len(parts)))


def test_modules_beside_the_packages_show_their_classes_and_functions():
    assert {module.path for module in modules()} >= {"ifloo.agreement", "ifloo.errors", "ifloo.params"}
    (errors,) = (module for module in modules() if module.path == "ifloo.errors")
    assert errors.names == ("IflooError", "InputError", "WorkError")


def test_a_room_has_one_page_and_a_section_in_the_index():
    for module in modules():
        assert f"api/{module.room}.md" in pages()
        assert f"\n## [{module.path}]({module.room}.md)\n\n{module.summary}\n" in pages()["api/index.md"]


def test_the_room_is_the_first_part_after_the_package():
    assert Module("ifloo.data.multimodal", "", ()).room == "data"
