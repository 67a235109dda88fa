"""Builds the documentation: ``sphinx-build -n -W docs docs/_build``. It needs no network.

autodoc takes docstrings from the code, and `tables` below generates tables from it.
"""

from __future__ import annotations

import errno
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

import click

import socketkit
from socketkit import cli, seams
from socketkit._engine import accepting, intake
from socketkit._system import repeats
from socketkit.composition import builtin
from socketkit.errors import SocketkitError
from socketkit.testing.__main__ import KINDS
from socketkit.testing.__main__ import main as testing
from socketkit.testing.conformance.recipes import RecipeConformance

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "socketkit"
author = "The socketkit developers"
copyright = author
version = release = socketkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"socketkit {version}"

myst_enable_extensions = ["substitution", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Seconds": "Seconds"}

default_role = "py:obj"  # for `single backticks` in a docstring; see `resolve`

nitpick_ignore_regex = [
    # The standard library's pages are not fetched, because a build needs no network.
    (
        r"py:.*",
        r"(?:collections|concurrent|contextlib|enum|io|os|pathlib|re|selectors|socket|ssl|subprocess|threading|types|typing|_thread)\..*",
    ),
    (r"py:.*", r"(?:Any|Callable|Iterable|Literal|Mapping|Path|PathLike|Self|Sequence|TracebackType|Enum|datetime|optional)"),
    # attrs puts this into the signature of a class whose field has a factory.
    (r"py:.*", r"NOTHING"),
    # pluggy's pages are not fetched either.
    (r"py:.*", r"(?:pluggy\..*)?PluginManager"),
    # Handlers that the kit has for its own checks.
    (r"py:class", r"socketkit\.testing\.conformance\.commands\..*"),
]
nitpick_ignore = [
    # Type variables and aliases of plain types: `reference/seams/index` explains them.
    *(("py:class", name) for name in ("Request", "Address", "Seconds", "Kind", "Unit", "R")),
    # `Server.stopping` says all about what it returns.
    ("py:class", "socketkit._engine.stopping.Stopping"),
]


# --- docstrings: the house style as reStructuredText ------------------------------------------------------------------

_ITEM = re.compile(r"((?:\w+(?:, \w+)*)|Attributes, [^:]+): (?=\S)")
_HEADING = re.compile(r"[A-Z][^:]*:")


def reshape(_app: Sphinx, _what: str, _name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """Turn lines such as ``drain: seconds ...`` into list items, and also the indented lines below ``Args:``."""
    lines[:] = [line for block in _blocks(lines) for line in _block(block)]


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []


def _block(block: list[str]) -> Iterator[str]:
    if block[0].startswith((" ", "*", "..", "-", "+", "|")):  # a list, a directive or code: already reStructuredText
        yield from (*block, "")
        return
    for item in _items(block):
        head, *rest = item
        if _HEADING.fullmatch(head) and rest:
            yield from (f"**{head.removesuffix(':')}**", "")
            yield from _block(textwrap.dedent("\n".join(rest)).splitlines())
            continue
        text = " ".join(line.strip() for line in item)
        named = _ITEM.match(text)
        yield from ((f"- **{named[1]}**: {text[named.end() :]}" if named else text), "")


def _items(block: list[str]) -> Iterator[list[str]]:
    item: list[str] = []
    for line in block:
        if item and not line.startswith(" ") and (_ITEM.match(line) or _HEADING.fullmatch(line)):
            yield item
            item = []
        item.append(line)
    yield item


def plain(
    _app: Sphinx, what: str, _name: str, thing: Any, _options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Show Protocols and enumerations without a constructor, because users call none, and the alias for seconds by its name."""
    if what == "class" and (getattr(thing, "_is_protocol", False) or issubclass(thing, Enum)):
        return "", ""
    return signature and signature.replace("TypeAliasForwardRef('Seconds')", "Seconds"), returns


# --- references -------------------------------------------------------------------------------------------------------


def resolve(app: Sphinx, env: BuildEnvironment, node: nodes.Element, contnode: nodes.Element) -> nodes.Element | None:
    """Resolve an unqualified name in a docstring or an annotation.

    `Backticks` in a docstring also mark parameters, fields and methods of the same class. A name without a documented object is shown
    as code. Explicit roles in a page, such as {py:class}, are still checked by nitpick.
    """
    if node.get("refdomain") != "py":
        return None
    domain: Any = env.get_domain("py")
    bare = node["reftarget"].rpartition(".")[2]
    found = {entry.node_id: (name, entry) for name, entry in domain.objects.items() if name.rpartition(".")[2] == bare}
    kinds = {"class", "exception"} if node["reftype"] == "class" else {"class", "exception", "function", "data"}
    found = {key: value for key, value in found.items() if value[1].objtype in kinds and not value[1].aliased}
    if len(found) == 1 and node["reftarget"] == bare:
        [(name, entry)] = found.values()
        from sphinx.util.nodes import make_refnode  # noqa: PLC0415 - Sphinx is loaded when it calls this

        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, [contnode], name)
    return contnode if node["reftype"] == "obj" else None


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(heads), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables() -> dict[str, str]:
    """Return the tables that pages show as ``{{ name }}``."""
    names = sorted((errno.errorcode[number], what) for number, what in accepting.ACCEPT_ERRORS.items())
    verdicts = {what: ", ".join(f"`{name}`" for name, its in names if its == what) for what in ("retry", "pause", "fatal")}
    offers = {
        "transport": builtin.socketkit_transports(),
        "layer": builtin.socketkit_layers(),
        "dispatcher": builtin.socketkit_dispatchers(),
        "lifecycle": builtin.socketkit_lifecycles(),
    }
    return {
        "accept_errors": _table(("verdict", "errors"), verdicts.items()),
        "accept_numbers": _table(
            ("constant", "value", "meaning"),
            [
                ("`SHORTEST_PAUSE`", f"{accepting.SHORTEST_PAUSE:g} s", "the first pause of a listener"),
                ("`LONGEST_PAUSE`", f"{accepting.LONGEST_PAUSE:g} s", "the longest pause; each is twice the one before"),
                ("`WINDOW`", f"{repeats.WINDOW:g} s", "the least time between two warnings about one listener"),
                ("`RETRIES_IN_A_ROW`", f"{accepting.RETRIES_IN_A_ROW}", "this many `retry` errors without a success count as a `pause`"),
                ("`UNITS_PER_WAIT`", f"{intake.UNITS_PER_WAIT}", "the number of requests taken before the selector is asked again"),
            ],
        ),
        "refusals": _table(("kind", "meaning"), ((f"`{kind}`", text) for kind, text in seams.REFUSALS.items())),
        "events": _table(("event", "arguments and meaning"), ((f"`{name}`", text) for name, text in seams.EVENTS.items())),
        "parts": _table(
            ("kind", "name", "class", "page"),
            (
                (kind, f"`{name}`", f"`{recipe.__name__}`", f"[{name}]({name}.md)")
                for kind, parts in offers.items()
                for name, recipe in parts.items()
            ),
        ),
        "errors": _table(
            ("error", "is also a", "says"),
            (
                (f"`{error.__name__}`", f"`{error.__bases__[1].__name__}`", (inspect.getdoc(error) or "").partition("\n")[0])
                for error in sorted(SocketkitError.__subclasses__(), key=lambda each: each.__name__)
            ),
        ),
    }


def promises() -> dict[str, str]:
    """Return a table of the promises that each class of the conformance kit checks, which pages show as ``{{ promises_SEAM }}``."""
    return {
        f"promises_{seam}": _table(
            ("check", "promise"),
            (
                (f"`{name}`", " ".join((inspect.getdoc(getattr(kind, name)) or "").split()))
                for name in kind.promises()
                if seam == "recipe" or not hasattr(RecipeConformance, name)
            ),
        )
        for seam, kind in {"recipe": RecipeConformance, **KINDS}.items()
    }


def helps() -> dict[str, str]:
    """Return the ``--help`` text of each command, which pages show as ``{{ help_NAME }}``."""
    group = click.Context(cli.main, info_name="socketkit", **{**cli.main.context_settings, "terminal_width": 100, "max_content_width": 100})
    texts = {}
    for name in cli.COMMANDS:
        command = cli.main.get_command(None, name)
        context = click.Context(command, group, name)
        texts[f"help_{name}"] = f"```text\n{command.get_help(context)}\n```"
    context = click.Context(
        testing, info_name=testing.name, **{**testing.context_settings, "terminal_width": 100, "max_content_width": 100}
    )
    texts["help_testing"] = f"```text\n{testing.get_help(context)}\n```"
    return texts


myst_substitutions = {"version": version, **tables(), **promises(), **helps()}


def setup(app: Sphinx) -> None:
    """Connect the functions above. Sphinx calls this."""
    app.connect("autodoc-process-docstring", reshape)
    app.connect("autodoc-process-signature", plain)
    app.connect("missing-reference", resolve)
