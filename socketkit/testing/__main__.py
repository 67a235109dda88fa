"""The command ``python -m socketkit.testing``: checks that a part keeps the promises of its seam, and says which it breaks."""

from __future__ import annotations

import faulthandler
import inspect
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import reduce
from importlib import import_module
from types import FrameType
from typing import Any

import attrs
import click

from socketkit.seams import EVENTS
from socketkit.testing.conformance import (
    Conformance,
    DispatcherConformance,
    Finding,
    LayerConformance,
    LifecycleConformance,
    ObserverConformance,
    Report,
    TransportConformance,
)
from socketkit.testing.conformance.promises import BrokenPromiseError, find, with_article

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
@click.option(
    "--client", metavar="MODULE:FUNCTION", help="For a layer: does a client's part on a socket, and returns a socket to go on with."
)
@click.option("--only", metavar="NAME", help="A single promise, by the name of its check, such as test_drain_waits.")
@click.option(
    "--limit",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for each check, after which it counts as hanging.",
)
def main(part: str, seam: str | None, client: str | None, only: str | None, limit: float) -> None:
    r"""Check that a part keeps the promises of its seam.

    RECIPE is a class or a function that returns a recipe without arguments, or a recipe. For an observer, it returns a new observer.

    \b
    Examples:
      python -m socketkit.testing my_plugin:MyDispatcher
      python -m socketkit.testing my_plugin:MyLayer --client my_plugin.testing:say_hello
    """
    signal.signal(signal.SIGINT, _Interrupt())
    logging.getLogger("socketkit").addHandler(logging.NullHandler())  # what checks provoke on purpose is no news
    found = _load(part)
    make: Callable[[], Any] = found if callable(found) and not _is_recipe(found) else lambda: found
    recipe = _made(make)
    kind = KINDS[seam or _seam(recipe)]
    members: dict[str, Any] = {"make": lambda _self: make()}
    if client is not None:
        if kind is not LayerConformance:
            raise click.UsageError(f"--client is for layers, and this is checked as {with_article(kind.seam)}; leave it out.")
        members["client"] = staticmethod(_load(client))
    checks = type(kind.__name__, (kind,), members)
    names = [name for name in kind.promises() if only in {None, name}]
    if not names:
        raise click.UsageError(f"{with_article(kind.seam)} has no check {only}; the checks are {', '.join(kind.promises())}.")
    findings: list[Finding] = []
    click.echo(Report(repr(recipe), kind.seam, ()).title)
    for name in names:
        findings.append(_find(getattr(checks(), name), limit))
        click.echo(str(findings[-1]))
    report = Report(repr(recipe), kind.seam, tuple(findings))
    click.echo(report.summary)
    sys.stdout.flush()
    os._exit(1 if report.broken else 0)  # a broken part may have left threads behind, for which the interpreter would wait


def _find(promised: Callable[[], object], limit: float) -> Finding:
    """Check one promise, and break the check off if it hangs."""
    alarm = _Alarm(limit)
    with alarm:
        finding = find(promised)
    return attrs.evolve(finding, result="broken", reason=alarm.reason) if alarm.reason else finding


class _Alarm:
    """Interrupts the main thread after some seconds, and then every second, because what cleans up may hang too."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.reason = ""
        """Where the thread was the first time; nothing if the alarm has not rung."""

    def __enter__(self) -> None:
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, self._ring)
            signal.setitimer(signal.ITIMER_REAL, self._seconds, 1.0)
        else:
            faulthandler.dump_traceback_later(self._seconds, exit=True)

    def __exit__(self, *_error: object) -> None:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            faulthandler.cancel_dump_traceback_later()

    def _ring(self, _number: int, frame: FrameType | None) -> None:
        where = "".join(traceback.format_stack(frame)[-3:])
        self.reason = self.reason or f"the check had not ended after {self._seconds:g} s; it hangs here:\n{where}"
        raise BrokenPromiseError(self.reason)


class _Interrupt:
    """Handles Ctrl-C: ends the process at once, because a part that hangs would keep anything else from happening."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() == self._pid:  # not a child of the part, which gets the signal too
            os.write(2, b"interrupted\n")
        os._exit(128 + number)


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise click.UsageError(f"{name} must be MODULE:NAME, such as my_plugin:MyDispatcher.")
    try:
        return reduce(getattr, attribute.split("."), import_module(module))
    except (Exception, SystemExit) as error:  # importing runs the module, which may raise anything
        raise click.UsageError(f"{name} cannot be imported: {type(error).__name__}: {error}.") from error


def _is_recipe(found: Any) -> bool:
    """Return whether it is a part itself, and not a class or a function that returns one."""
    return not inspect.isclass(found) and not inspect.isroutine(found)


def _made(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise click.UsageError(f"the recipe cannot be made without arguments: {reason}; name a function that makes it.") from error


def _seam(part: Any) -> str:
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
