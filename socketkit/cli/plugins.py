"""``socketkit plugins``: lists the installed parts with their suppliers and options."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import attrs
import click

from socketkit.composition.catalog import KINDS, Catalog, Offer, Plugin
from socketkit.composition.options import fields
from socketkit.errors import ClashError, ConfigError, did_you_mean


@click.command(epilog="\b\nsocketkit plugins\nsocketkit plugins fork")
@click.argument("name", required=False)
def plugins(name: str | None) -> None:
    """List the installed plugins and their parts; with the NAME of a plugin or a part, its options too.

    A part is listed with its name, for text and files, and with its class, for Python: thread (Threads).

    A plugin that is broken or disabled is listed with the reason and keeps nothing else from working.
    """
    catalog = Catalog.load()
    lines = _everything(catalog) if name is None else _details(catalog, name)
    for line in lines:
        click.echo(line)


def _everything(catalog: Catalog) -> Iterator[str]:
    for plugin in catalog.plugins:
        yield _headline(plugin)
        for kind in KINDS:
            names = [f"{offer.name} ({offer.recipe.__name__})" for offer in plugin.offers if offer.kind == kind]
            if names:
                yield f"  {kind + ':':<12}{', '.join(names)}"
        yield from _observers(plugin)
    yield from _clashes(catalog)


def _observers(plugin: Plugin) -> Iterator[str]:
    if plugin.observes:
        yield f"  {'observers:':<12}for servers that are composed by name"


def _headline(plugin: Plugin) -> str:
    title = f"{plugin.name}, from {_source(plugin)}"
    if plugin.blocked:
        return f"{title}: disabled by SOCKETKIT_DISABLED_PLUGINS"
    return f"{title}: broken, {plugin.error.reason}" if plugin.error else title


def _source(supplied: Plugin | Offer) -> str:
    return f"{supplied.distribution} {supplied.version}".rstrip()


def _clashes(catalog: Catalog) -> Iterator[str]:
    for kind in KINDS:
        for name in sorted({offer.name for offer in catalog.offers(kind)}):
            try:
                catalog.find(kind, name)
            except ClashError as clash:
                yield f"clash: {clash}"


def _details(catalog: Catalog, name: str) -> Iterator[str]:
    """Yield the details of the plugin, or of all parts, with this name.

    Raises: ConfigError if there is neither.
    """
    found = [plugin for plugin in catalog.plugins if plugin.name == name]
    offers = [offer for plugin in catalog.plugins for offer in plugin.offers if name in {offer.name, plugin.name}]
    if not found and not offers:
        known = sorted({each for plugin in catalog.plugins for each in (plugin.name, *(offer.name for offer in plugin.offers))})
        raise ConfigError.of(f"no plugin or part is named {name!r}{did_you_mean(name, known)}; installed: {', '.join(known)}")
    for plugin in found:
        yield _headline(plugin)
        yield from _observers(plugin)
    for offer in offers:
        yield from _part(offer)


def _part(offer: Offer) -> Iterator[str]:
    yield f"{offer.kind} {offer.name}: {offer.recipe.__name__}, from {_source(offer)}"
    yield from _indented(inspect.getdoc(offer.recipe) or "", 4)
    comments = _comments(offer.recipe)
    for name, field in fields(offer.recipe).items():
        yield f"    {name}: {_type(field.type)}{_default(field)}"
        yield from _indented(comments.get(field.name, ""), 8)


def _type(kind: Any) -> str:
    return kind if isinstance(kind, str) else inspect.formatannotation(kind)


def _default(field: attrs.Attribute[Any]) -> str:
    if field.default is attrs.NOTHING:
        return " (needed)"
    if not field.repr:
        return " = (not shown)"
    default: Any = field.default
    if not isinstance(default, attrs.Factory):  # type: ignore[arg-type] # type checkers see a function
        return f" = {default!r}"
    return f" = {default.factory()!r}" if not default.takes_self else " = (made from the others)"


def _comments(recipe: type[Any]) -> dict[str, str]:
    """Return the docstring below each field in the source of the recipe and its bases; empty if there is no source."""
    comments: dict[str, str] = {}
    for each in recipe.__mro__:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = getattr(tree.body[0], "body", [])
        for field, below in pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    comments.setdefault(name, inspect.cleandoc(text))
    return comments


def _indented(text: str, width: int) -> Iterator[str]:
    for line in text.splitlines():
        yield f"{' ' * width}{line}".rstrip()
