"""What ``socketkit serve`` does: serves one handler, or the servers of a configuration file, until a signal stops them."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from socketkit._system import early_signals, logs, notify, signals
from socketkit._system.threads import aside
from socketkit._system.wakeup import Wakeup
from socketkit.cli import _inetd
from socketkit.cli._servers import Watch, compose, import_from_here, receive_sockets, renew
from socketkit.cli._together import Together, reloading
from socketkit.composition import config
from socketkit.errors import ConfigError, Fault
from socketkit.lifecycles.graceful import Graceful
from socketkit.logs import Log
from socketkit.seams import State, grammar

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from types import FrameType

    from socketkit.composition.config import Composition
    from socketkit.seams import Lifecycle
    from socketkit.server import Server

log = Log("socketkit.cli.serve")

_STOP = (signal.SIGINT, signal.SIGTERM)


def serve(  # noqa: PLR0913, PLR0917 - what the command was given
    taken: socket.socket | None,
    what: str,
    names: Sequence[str],
    given: dict[str, Any],
    idle: str | None,
    usual_idle: str,
    *,
    inetd: bool,
) -> None:
    """Serve until a signal stops it. given: the options that compose a server. taken: the socket that inetd has left."""
    atexit.register(_ignore_late_signals)  # before any module of a program is imported, so called after all that those register
    receive_sockets()
    import_from_here()
    _refuse_misuse(what, names, given, idle, inetd=inetd)
    read = None  # reads the configuration again on reload
    task = _inetd.task(taken, grammar.seconds(idle or usual_idle)) if inetd else None
    if what.endswith(".toml"):
        read = partial(_read, what, *names)
        compositions = read()
    else:
        if task is not None:
            given["listen"] = [task.transport]
        with _named_as_typed():
            compositions = {"": config.composition({"handler": what, **given})}
    watch = Watch(is_silent=task is not None)
    servers = compose(compositions, watch)
    with ExitStack() as opened:
        for server in servers.values():
            opened.enter_context(server)  # all are bound before the first one serves
        if len(servers) == 1:
            reload = partial(aside, partial(_reload, read, compositions, *servers.values())) if read is not None else None
            deliver = opened.enter_context(_on_hangup(reload or partial(signal.raise_signal, signal.SIGTERM)))

            def on_start(server: Server) -> None:
                if task is not None:
                    task.begin(server)
                deliver()

            watch.on_start = on_start
            ever = list(servers.values())
            _prepare_for(ever[0].lifecycle, watch)
            ever[0].serve_forever()  # in the main thread: its lifecycle gets signals there, and forks see no other thread
        else:
            wakeup = opened.enter_context(closing(Wakeup()))
            together = Together(compositions, servers, read or dict, watch, wakeup)
            opened.enter_context(_on_hangup(together.reload))()
            around = _around(servers.values())
            _prepare_for(around, watch)
            around.serve(together)
            ever = together.ever
    _leave(ever)


def _refuse_misuse(what: str, names: Sequence[str], given: Collection[str], idle: str | None, *, inetd: bool) -> None:
    """Raise click.UsageError if these arguments do not belong together. given: the options that compose a server."""
    if idle is not None and not inetd:
        raise click.UsageError("--idle applies only with --inetd.")
    if what.endswith(".toml"):
        for option in ("inetd",) if inetd else given:
            raise click.UsageError(f"--{option} applies only to a HANDLER; {'leave it out' if inetd else f'set it in {what} instead'}.")
    elif names:
        raise click.UsageError(f"Unexpected argument {names[0]!r}: a HANDLER takes no NAME. Give addresses with --listen URL.")
    elif inetd and "listen" in given:
        raise click.UsageError("--inetd serves the socket that is standard input; leave --listen out.")
    elif not inetd and "listen" not in given:
        raise click.UsageError("A HANDLER needs an address to listen on, as in --listen tcp://127.0.0.1:9999.")


@contextmanager
def _named_as_typed() -> Iterator[None]:
    """Name the arguments of the command in faults, in place of the keys that a file would have."""
    try:
        yield
    except ConfigError as error:
        typed = {"handler": "HANDLER", "": ""}
        raise ConfigError(
            tuple(Fault(typed.get(each.key, f"--{each.key.replace('.', ' ', 1)}"), each.message) for each in error.faults)
        ) from error


def _read(path: str, *names: str) -> dict[str, Composition]:
    return {f"servers.{name}": parts for name, parts in config.read(path, *names).items()}


def _around(servers: Iterable[Server]) -> Graceful:
    """Return the lifecycle around several servers. Each drains by its own lifecycle; restart is on only if all allow it."""
    lifecycles = [server.lifecycle for server in servers]
    return Graceful(
        drain=None,
        restart=all(getattr(each, "restart", True) for each in lifecycles),
        restart_timeout=max(getattr(each, "restart_timeout", 0.0) for each in lifecycles) or 60.0,
    )


@contextmanager
def _on_hangup(act: Callable[[], object]) -> Iterator[Callable[[], object]]:
    """Call `act` on SIGHUP inside the block, in this process only. If SIGHUP is ignored, as under nohup(1), do nothing.

    The block gets a function to call once `act` may be called: it delivers a SIGHUP that has arrived before.
    """
    number, process = getattr(signal, "SIGHUP", None), os.getpid()
    if number is None or not early_signals.is_free(number):
        yield lambda: None
        return

    def on_hangup(_number: int, _frame: FrameType | None) -> None:
        if os.getpid() == process:
            act()

    before = signals.handle(number, on_hangup)
    try:
        yield partial(early_signals.deliver, number, before)
    finally:
        signal.signal(number, before)


def _prepare_for(lifecycle: Lifecycle, watch: Watch) -> None:
    """Prepare the signals for serving: what the lifecycle handles has a handler before and after, too, and all else its default action."""
    graceful = lifecycle if isinstance(lifecycle, Graceful) and lifecycle.signals else None
    if hasattr(signal, "SIGUSR2") and (graceful is None or not graceful.restart):
        early_signals.release(signal.SIGUSR2)
    if graceful is None:
        return
    ending = _Ending(watch, {number: signal.getsignal(number) for number in _STOP})
    for number in _STOP:
        signals.handle(number, ending)


class _Ending:
    """What SIGINT and SIGTERM do while the lifecycle does not handle them: before serving begins, and after it has ended.

    Before, they do what they did. Afterwards the process is leaving, so the first changes nothing, and the next one leaves at once.
    """

    def __init__(self, watch: Watch, before: Mapping[int, Any]) -> None:
        self._watch = watch
        self._before = before
        self._received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._watch.began:
            if self._received:
                os._exit(128 + number)
            self._received = True
        elif callable(before := self._before[number]):
            before(number, frame)
        else:
            signal.signal(number, before)
            os.kill(os.getpid(), number)


def _ignore_late_signals() -> None:
    """Ignore the signals that `_Ending` handles: the interpreter's last steps would restore their default action. Source: signalmodule.c."""
    for number in _STOP:
        if isinstance(signal.getsignal(number), _Ending):
            signal.signal(number, signal.SIG_IGN)


def _reload(read: Callable[[], Mapping[str, Composition]], compositions: Mapping[str, Composition], server: Server) -> None:
    """Reload the file of a single server. If it is valid and changed, restart: the new generation also forks from its main thread.

    If it has not changed, other files that it names may have, such as certificates.
    """
    with reloading():
        found = read()
        compose(found)
        if found == compositions:
            log.warning("reload found no changes in the configuration")
            renew(server)
            notify.ready()
        elif callable(signal.getsignal(signal.SIGUSR2)):
            os.kill(os.getpid(), signal.SIGUSR2)
        else:
            raise ConfigError.of("the change needs a restart, which the lifecycle does not offer; stop the server and start it again")


def _leave(servers: Sequence[Server]) -> None:
    """Exit with 1 if a server failed, or if any of its work could not be stopped."""
    reports = [report for report in (server.stop() for server in servers) if report is not None]
    stuck = [each for report in reports for each in report.stuck]
    if stuck:
        click.echo(f"Error: abandoned requests that did not end in time: {', '.join(map(str, stuck))}", err=True)
        logs.leave(1)  # a normal exit of the interpreter would wait for the threads of these handlers
    if any(server.state is State.FAILED for server in servers):
        sys.exit(1)
