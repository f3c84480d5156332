"""Public functions with the name of their module, such as `ifloo.minimize.newton_cg`, in the API reference."""

from __future__ import annotations

import griffe


class SameNames(griffe.Extension):
    """Lets such a name lead to the function, as an import does, and not to the module."""

    def on_package(self, *, pkg: griffe.Module, **unused: object) -> None:
        """Replaces these modules among the members of their package, after all paths through them are resolved."""
        packages = [pkg, *_modules(pkg)]
        for package in packages:
            for member in package.members.values():
                if isinstance(member, griffe.Alias):
                    _resolve(member)
        for package in packages:
            for name, path in package.imports.items():
                member = package.members.get(name)
                if isinstance(member, griffe.Module) and path == f"{member.path}.{name}":
                    package.members[name] = griffe.Alias(name, member.members[name], parent=package)


def _modules(module: griffe.Module) -> list[griffe.Module]:
    inner = [member for member in module.members.values() if isinstance(member, griffe.Module)]
    return [*inner, *(one for each in inner for one in _modules(each))]


def _resolve(alias: griffe.Alias) -> None:
    try:
        alias.resolve_target()
    except griffe.AliasResolutionError:  # of another package, which is not read
        return
