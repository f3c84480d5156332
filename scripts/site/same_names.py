"""Public functions with the name of their module, such as `ifloo.minimize.newton_cg`, in the API reference."""

from __future__ import annotations

import griffe


class SameNames(griffe.Extension):
    """Makes such a name refer to the function, as an import does, not to the module."""

    def on_package(self, *, pkg: griffe.Module, **unused: object) -> None:
        """Replaces these modules among the members of their package, after all paths through them are resolved."""
        griffe.DataclassesExtension().on_package(pkg=pkg)  # which would not reach the classes of these modules later
        packages = [pkg, *_modules(pkg)]
        for package in packages:
            for member in package.members.values():
                if isinstance(member, griffe.Alias):
                    _resolve(member)
        for package in packages:
            for name, path in package.imports.items():
                module = package.members.get(name)
                if isinstance(module, griffe.Module) and path == f"{module.path}.{name}":
                    package.members[name] = griffe.Alias(name, module.members[name], parent=package)


def _modules(module: griffe.Module) -> list[griffe.Module]:
    inner = [member for member in module.members.values() if isinstance(member, griffe.Module)]
    return [*inner, *(one for each in inner for one in _modules(each))]


def _resolve(alias: griffe.Alias) -> None:
    try:
        alias.resolve_target()
    except griffe.AliasResolutionError:  # of another package, which is not read
        return
