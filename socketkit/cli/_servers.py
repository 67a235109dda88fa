"""Shared by the commands that work with servers: makes servers from compositions, and describes a server briefly."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from socketkit._engine.steps import engine_of
from socketkit._system import activation
from socketkit.composition.catalog import Catalog
from socketkit.composition.options import FaultCollector
from socketkit.seams.limits import Limits
from socketkit.seams.stats import DrainReport
from socketkit.server import Server, assemble

if TYPE_CHECKING:
    from socketkit._engine.run import Run
    from socketkit.composition.config import Composition
    from socketkit.seams import Listener


class Watch:
    """Observes the servers: prints where each listens, calls `on_start` before its loop runs and `on_end` when it has ended."""

    def __init__(self, *, is_silent: bool = False) -> None:
        self._is_silent = is_silent
        self.began = False
        """Whether a server has begun to serve."""
        self.on_start: Callable[[Server], object] = lambda _server: None
        self.on_end: Callable[[Server], object] = lambda _server: None

    def server_started(self, server: Server) -> None:
        """Print the listeners' URLs. Called within the lifecycle, so that a signal may be sent as soon as the line appears."""
        self.began = True
        self.on_start(server)
        for url in () if self._is_silent else server.urls:
            click.echo(f"serving {url} {strategy(server)}", err=True)

    def server_stopped(self, server: Server, _report: DrainReport | None) -> None:
        """Call `on_end`, also for a server that failed."""
        self.on_end(server)


def import_from_here() -> None:
    """Make handlers importable from the working directory, as ``python -m`` does for modules.

    Raises: click.UsageError if that has been removed.
    """
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        raise click.UsageError("The working directory does not exist any more; start from one that does.") from None
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def receive_sockets() -> None:
    """Take the sockets passed to this process, before a handler's module is imported, which may start programs. Raises: click.UsageError."""
    try:
        activation.receive()
    except OSError as error:
        raise click.UsageError(f"{error.strerror}.") from error


def compose(compositions: Mapping[str, Composition], *observers: object) -> dict[str, Server]:
    """Return a server for each composition, with the given observers and those of the plugins. Nothing is bound.

    Raises: ConfigError with every fault, under the key of its server.
    """
    faults, servers = FaultCollector(), {}
    for key, parts in compositions.items():
        with faults.under(key):
            servers[key] = assemble(parts, *observers)
            engine_of(servers[key]).name = key
    faults.check()
    return servers


def run_of(server: Server) -> Run | None:
    """Return the run of a server; None while it does not serve."""
    return engine_of(server).run


def renew(server: Server) -> None:
    """Have a server that serves renew its layers, such as certificates from files."""
    run = run_of(server)
    if run is not None:
        run.renew()


def listeners(server: Server) -> Iterable[Listener]:
    """Return the open listeners of a server."""
    engine: Any = engine_of(server)
    return engine.listeners  # type: ignore[no-any-return]


def strategy(server: Server) -> str:
    """Return the names of the server's parts as ``(dispatcher, lifecycle)``."""
    return f"({part_name(server.dispatcher)}, {part_name(server.lifecycle)})"


def limits(server: Server) -> str:
    """Return the limits that differ from their defaults, each preceded by a comma."""
    fields = attrs.fields(type(server.limits))
    given = {field.name: getattr(server.limits, field.name) for field in fields}
    return "".join(f", {name}={given[name]!r}" for name in given if given[name] != getattr(Limits(), name))


def part_name(recipe: Any) -> str:
    """Return the name of a recipe, followed by a slash and the name of its inner recipe, if it has one."""
    name = Catalog.name_of(recipe) or type(recipe).__name__
    inner = getattr(recipe, "inner", None)
    return f"{name}/{part_name(inner)}" if inner is not None else name
