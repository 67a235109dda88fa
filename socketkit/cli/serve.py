"""``socketkit serve``: one handler, or the servers of a configuration file, in this process until a signal stops them."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import click

from socketkit import config
from socketkit.cli._servers import compose, import_from_here, run_of, strategy
from socketkit.lifecycles.graceful import Graceful
from socketkit.loop import Wakeup
from socketkit.serving import State
from socketkit.stats import DrainReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from socketkit.server import Server


@click.command(
    short_help="Serve a handler, or the servers of a configuration file.",
    epilog="\b\nsocketkit serve myapp:Echo --listen tcp://127.0.0.1:9999 --listen unix:///run/echo.sock\nsocketkit serve servers.toml echo dns",
)
@click.argument("what", metavar="(HANDLER | CONFIG.toml)")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--listen", metavar="URL", multiple=True, help="Where to listen, as in tcp://127.0.0.1:9999. May be given more than once.")
@click.option("--dispatcher", metavar="SPEC", help="Where and when the handler runs, as in thread or fork:8.")
@click.option("--lifecycle", metavar="SPEC", help="How serving starts and stops, as in graceful:drain=10s.")
def serve(what: str, names: Sequence[str], listen: Sequence[str], dispatcher: str | None, lifecycle: str | None) -> None:
    """Serve HANDLER, given as module:Class, or the servers of CONFIG.toml, all or those NAMEd.

    Modules are also found in the working directory. Once listening, a line for each listener goes to standard error. SIGINT and
    SIGTERM stop gracefully, a second one at once. SIGUSR2 restarts: the same command starts again and takes the sockets over, so that
    no client is refused. Exit codes: 0 stopped, 1 failed, 2 bad usage or configuration.
    """
    import_from_here()
    given = {"listen": listen, "dispatcher": dispatcher, "lifecycle": lifecycle}
    if what.endswith(".toml"):
        for option in (option for option, value in given.items() if value):
            raise click.UsageError(f"--{option} is for a HANDLER; {what} says itself how its servers are made.")
        compositions = {f"servers.{name}": parts for name, parts in config.read(what, *names).items()}
    else:
        if names:
            raise click.UsageError(f"{names[0]!r} is one argument too many: a HANDLER has no NAMEs. Give places with --listen URL.")
        if not listen:
            raise click.UsageError("A HANDLER needs a place to listen on, as in --listen tcp://127.0.0.1:9999.")
        compositions = {"": config.composition({"handler": what, **{option: value for option, value in given.items() if value}})}
    watch = _Watch()
    servers = list(compose(compositions, watch).values())
    with ExitStack() as opened:
        for server in servers:
            opened.enter_context(server)  # all are bound before the first one serves
        if len(servers) == 1:
            servers[0].serve_forever()  # in the main thread, where its lifecycle hears signals and forks have no company
        else:
            wakeup = opened.enter_context(closing(Wakeup()))
            _around(servers).serve(_Together(servers, watch, wakeup))
    _leave(servers)


def _around(servers: Sequence[Server]) -> Graceful:
    """Return the lifecycle around several servers, each of which drains by its own: a restart is what all of them agree with."""
    lifecycles = [server.lifecycle for server in servers]
    return Graceful(
        drain=None,
        restart=all(getattr(each, "restart", True) for each in lifecycles),
        restart_timeout=max(getattr(each, "restart_timeout", 0.0) for each in lifecycles) or 60.0,
    )


class _Watch:
    """Observes the servers: says where each listens, calls `on_start` before its loop runs and `on_end` when it has ended."""

    def __init__(self) -> None:
        self.on_start: Callable[[Server], object] = lambda _server: None
        self.on_end: Callable[[], object] = lambda: None

    def server_started(self, server: Server) -> None:
        """Called within the lifecycle, so that whoever reads the line may send a signal at once."""
        self.on_start(server)
        for url in server.urls:
            click.echo(f"serving {url} {strategy(server)}", err=True)

    def server_stopped(self, _server: Server, _report: DrainReport | None) -> None:
        """Called also for one that failed."""
        self.on_end()


class _Together:
    """Several servers as the one that a lifecycle serves.

    Only the main thread gets signals and only one server can have it, so here none has: each serves in a thread of its own, under its
    own lifecycle, and the main thread holds a `Graceful` around them all, whose signals thereby mean the same as for a single server.
    It waits on a descriptor and on nothing else, because a signal does not always interrupt a wait for a lock.
    When one of them ends, for whatever reason, the others are stopped too: part of a service is no service.
    """

    def __init__(self, servers: Sequence[Server], watch: _Watch, wakeup: Wakeup) -> None:
        self._servers = servers
        self._wakeup = wakeup
        self._over = False
        self._rounds: list[_Round] = []
        watch.on_start, watch.on_end = self._begin, self._end

    def run(self) -> None:
        with self._wakeup.woken_by_signals():
            for server in self._servers:
                server.start()
            for each in self._rounds:
                each.begin()
            while not self._over:
                self._wakeup.wait()

    def on_ready(self, callback: Callable[[], None], every: float | None = None) -> None:
        """Have it called when all are ready, and then each time that all of them have shown that they still take requests."""
        self._rounds.append(_Round(callback, every, self._servers))

    def hand_over(self) -> None:
        for server in self._servers:
            run = run_of(server)
            if run is not None:  # it has not ended by itself just now
                run.hand_over()
        self._end()

    def stop(self, drain: float | None = None) -> None:
        for server in self._servers:
            server.stop(drain, wait=False)
        self._end()

    def drain(self, _seconds: float | None, *, queue: bool = True) -> DrainReport:  # noqa: ARG002 - as the lifecycle of each says
        """Drain each for as long as its own lifecycle says."""
        self.stop()
        reports: list[DrainReport] = []
        with self._wakeup.woken_by_signals():
            threads = [threading.Thread(target=self._stop_one, args=(server, reports), daemon=True) for server in self._servers]
            for thread in threads:
                thread.start()
            while len(reports) < len(threads):
                self._wakeup.wait()
        return DrainReport(
            sum(report.finished for report in reports),
            sum(report.forced for report in reports),
            tuple(stuck for report in reports for stuck in report.stuck),
        )

    def _stop_one(self, server: Server, reports: list[DrainReport]) -> None:
        report = DrainReport()
        try:
            report = server.stop() or report
        finally:
            reports.append(report)
            self._wakeup.wake()

    def _begin(self, server: Server) -> None:
        for each in self._rounds:
            run = run_of(server)
            if run is not None and each.every is not None:
                run.on_ready(partial(each.heard_of, server), each.every)

    def _end(self) -> None:
        self._over = True
        self._wakeup.wake()


class _Round:
    """Calls `callback` when it begins, and then whenever every server was heard of since it was called last."""

    def __init__(self, callback: Callable[[], None], every: float | None, servers: Sequence[Server]) -> None:
        self.every = every
        self._callback = callback
        self._begun = False
        self._servers = servers
        self._silent = set(servers)
        self._changing = threading.Lock()

    def begin(self) -> None:
        self._callback()
        self._begun = True

    def heard_of(self, server: Server) -> None:
        """Called by the loop of the server."""
        with self._changing:
            self._silent.discard(server)
            if self._silent or not self._begun:
                return
            self._silent = set(self._servers)
        self._callback()


def _leave(servers: Sequence[Server]) -> None:
    """Exit with 1 if a server failed or something of it cannot be stopped."""
    reports = [report for report in (server.stop() for server in servers) if report is not None]
    stuck = [each for report in reports for each in report.stuck]
    if stuck:
        click.echo(f"Error: left behind what did not end in time: {', '.join(map(str, stuck))}", err=True)
        _exit_without_waiting()
    if any(server.state is State.FAILED for server in servers):
        sys.exit(1)


def _exit_without_waiting() -> NoReturn:
    """End the process although threads of handlers still run: the interpreter's own way out would wait for them."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)
