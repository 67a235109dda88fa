"""Explains a composition: each part, its supplier and its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs


@attrs.frozen
class Option:
    """One option of a part, with its value and whether that is the default."""

    name: str
    value: Any
    is_default: bool


@attrs.frozen
class Part:
    """One part of a server."""

    role: str
    name: str
    supplier: str
    """The distribution it comes from, with its version; the module, if there is no distribution."""
    options: tuple[Option, ...] = ()


@attrs.frozen
class Explanation:
    """A server's composition. Its `str()` is meant for people to read."""

    parts: tuple[Part, ...]

    def without_defaults(self) -> Explanation:
        """Return it without the options that have their default values."""
        return Explanation(
            tuple(attrs.evolve(part, options=tuple(each for each in part.options if not each.is_default)) for part in self.parts)
        )

    def __str__(self) -> str:
        lines = []
        for part in self.parts:
            lines.append(f"{part.role}: {part.name}, from {part.supplier}")
            lines += [f"    {each.name} = {each.value!r}{' (default)' if each.is_default else ''}" for each in part.options]
        return "\n".join(lines)


def explain(transports: Sequence[Any], handler: Any, dispatcher: Any, lifecycle: Any, limits: Any = None) -> Explanation:
    """Return the explanation of a composition. A part is None if the server does not have it."""
    roles = [*(("transport", each) for each in transports), ("dispatcher", dispatcher), ("lifecycle", lifecycle), ("limits", limits)]
    parts = [_part(role, recipe) for role, recipe in roles if recipe is not None]
    name = getattr(handler, "__qualname__", None) or repr(handler)
    return Explanation((*parts, Part("handler", name, _supplier(handler))))


def _part(role: str, recipe: Any) -> Part:
    options = []
    for field in attrs.fields(type(recipe)) if attrs.has(type(recipe)) else ():
        value = getattr(recipe, field.name)
        options.append(Option(field.name, value, value == field.default))
    return Part(role, type(recipe).__name__, _supplier(type(recipe)), tuple(options))


def _supplier(thing: Any) -> str:
    from importlib import metadata  # noqa: PLC0415 - slow to import, and needed only here

    module = getattr(thing, "__module__", None) or type(thing).__module__
    package = module.partition(".")[0]
    for distribution in (package.replace("_", "-"), package):
        try:
            return f"{distribution} {metadata.version(distribution)}"
        except metadata.PackageNotFoundError:
            continue
    return f"module {module} (of no installed distribution)"
