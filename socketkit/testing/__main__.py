"""The command ``python -m socketkit.testing``: checks that a part keeps the promises of its seam, and says which it breaks."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from types import FrameType
from typing import Any

import click

from socketkit.seams import EVENTS
from socketkit.testing.conformance import (
    Conformance,
    DispatcherConformance,
    LayerConformance,
    LifecycleConformance,
    ObserverConformance,
    Report,
    TransportConformance,
)
from socketkit.testing.conformance.promises import BrokenPromiseError, find

KINDS: dict[str, type[Conformance]] = {
    kind.seam: kind for kind in (TransportConformance, LayerConformance, DispatcherConformance, LifecycleConformance, ObserverConformance)
}


@click.command(
    name="python -m socketkit.testing",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit code: 0 if all promises are kept, 1 if one is broken, 2 if the part cannot be checked.",
)
@click.argument("part", metavar="MODULE:RECIPE")
@click.option("--as", "seam", type=click.Choice(list(KINDS)), help="What to check it as; by default its methods tell.")
@click.option("--client", metavar="MODULE:FUNCTION", help="For a layer: does a client's part on a socket, and returns the socket.")
@click.option("--only", metavar="NAME", help="A single promise, by the name of its check, such as test_drain_waits.")
@click.option("--limit", default=60.0, show_default=True, metavar="SECONDS", help="Time for each check, after which it counts as hanging.")
def main(part: str, seam: str | None, client: str | None, only: str | None, limit: float) -> None:
    r"""Check that a part keeps the promises of its seam.

    RECIPE is a class or a function that returns a recipe without arguments, or a recipe. For an observer, it returns a new observer.

    \b
    Examples:
      python -m socketkit.testing my_plugin:MyDispatcher
      python -m socketkit.testing my_plugin:MyLayer --client my_plugin.testing:say_hello
    """
    logging.getLogger("socketkit").addHandler(logging.NullHandler())  # what checks provoke on purpose is no news
    found = _load(part)
    make: Callable[[], Any] = found if callable(found) and not _is_recipe(found) else lambda: found
    kind = KINDS[seam or _seam(make)]
    members: dict[str, Any] = {"make": lambda _self: make()}
    if client is not None:
        members["client"] = staticmethod(_load(client))
    checks = type(kind.__name__, (kind,), members)()
    names = [name for name in kind.promises() if only in {None, name}]
    if not names:
        raise click.UsageError(f"A {kind.seam} has no check {only}; the checks are {', '.join(kind.promises())}.")
    findings = []
    click.echo(f"{make()!r} as a {kind.seam}")
    for name in names:
        with _Alarm(limit):
            findings.append(find(getattr(checks, name)))
        click.echo(str(findings[-1]))
    report = Report(repr(make()), kind.seam, tuple(findings))
    click.echo(report.summary)
    sys.stdout.flush()
    os._exit(1 if report.broken else 0)  # a broken part may have left threads behind, for which the interpreter would wait


class _Alarm:
    """Breaks off a check that hangs, where the system has an alarm."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, self._ring)
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_error: object) -> None:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, _number: int, frame: FrameType | None) -> None:
        where = "".join(traceback.format_stack(frame)[-3:])
        raise BrokenPromiseError(f"the check had not ended after {self._seconds:g} s; it hangs here:\n{where}")


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise click.UsageError(f"{name} must be MODULE:NAME, such as my_plugin:MyDispatcher.")
    sys.path.insert(0, "")
    try:
        found: Any = import_module(module)
        for each in attribute.split("."):
            found = getattr(found, each)
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"{name} cannot be found: {error}.") from error
    finally:
        sys.path.remove("")
    return found


def _is_recipe(found: Any) -> bool:
    """Return whether it is a part itself, and not a class or a function that returns one."""
    return not inspect.isclass(found) and not inspect.isroutine(found)


def _seam(make: Callable[[], Any]) -> str:
    try:
        part = make()
    except TypeError as error:
        raise click.UsageError(f"the recipe cannot be made without arguments: {error}; name a function that makes it.") from error
    if hasattr(part, "open"):
        return "transport"
    if hasattr(part, "wrap") or hasattr(part, "begin"):
        return "layer"
    if hasattr(part, "serve"):
        return "lifecycle"
    if hasattr(part, "start"):
        return "dispatcher" if inspect.signature(part.start).parameters else "layer"
    if any(hasattr(part, name) for name in EVENTS):
        return "observer"
    raise click.UsageError(f"a {type(part).__name__} looks like no part; say what it is by --as.")


if __name__ == "__main__":
    main()
