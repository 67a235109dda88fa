"""Serves several servers in one process as one unit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs

from socketkit._engine.steps import engine_of
from socketkit._system import activation, notify
from socketkit.cli._servers import Watch, compose, listeners, renew, run_of
from socketkit.logs import Log
from socketkit.seams import State
from socketkit.seams.stats import DrainReport, InWork

if TYPE_CHECKING:
    from socketkit._system.wakeup import Wakeup
    from socketkit.composition.config import Composition
    from socketkit.server import Server

log = Log("socketkit.cli.serve")


@attrs.define(eq=False)
class Together:
    """The servers of a configuration, presented to a lifecycle as one: see `socketkit.seams.Serving`.

    Only the main thread gets signals, and only one server could serve there. So each server serves in its own thread under its own
    lifecycle, and the main thread runs a `Graceful` around them all, so that signals mean the same as for a single server.
    The main thread waits only on a descriptor, because a signal does not always interrupt a wait for a lock.
    When one server ends, for whatever reason, the others are stopped too.

    read: reads the configuration for `reload`; called in the main thread.
    """

    _compositions: Mapping[str, Composition]
    _servers: dict[str, Server]
    _read: Callable[[], Mapping[str, Composition]]
    _watch: Watch
    _wakeup: Wakeup
    _over: bool = attrs.field(default=False, init=False)
    _reloads: bool = attrs.field(default=False, init=False)
    _rounds: list[_Round] = attrs.field(factory=list, init=False)
    ever: list[Server] = attrs.field(init=False)
    """All current servers, and those that a reload replaced and that have not yet ended cleanly."""

    def __attrs_post_init__(self) -> None:
        self.ever = list(self._servers.values())
        self._watch.on_start, self._watch.on_end = self._started, self._ended

    # called by a lifecycle

    def run(self) -> None:
        """Serve until all servers are stopped or one has ended."""
        with self._wakeup.woken_by_signals():
            for server in self._servers.values():
                server.start()
            for each in self._rounds:
                each.begin()
            while not self._over:
                self._wakeup.wait()
                if self._reloads and not self._over:
                    self._reloads = False
                    self._reload()

    def on_ready(self, callback: Callable[[], None], every: float | None = None) -> None:
        """Call `callback` when all servers are ready, then each time all have shown again that they take requests."""
        self._rounds.append(_Round(callback, every, self._servers))

    def stop(self, drain: float | None = None) -> None:
        """Stop all servers."""
        for server in list(self.ever):
            server.stop(drain, wait=False)
        self._end()

    def in_work(self) -> InWork:
        """Return what all servers have yet to finish together, and the longest of their times."""
        runs = [run for server in list(self.ever) if (run := run_of(server)) is not None]
        busy = [found for run in runs if (found := run.in_work()).requests]
        limits = [each.seconds for each in busy if each.seconds is not None]
        return InWork(sum(each.requests for each in busy), None if len(limits) < len(busy) else max(limits, default=0.0))

    def renew(self) -> None:
        """Renew the layers of all servers."""
        for server in self._servers.copy().values():
            renew(server)

    def hand_over(self) -> None:
        """Hand over all servers. From any thread, even while the main thread carries out a reload."""
        for server in self._servers.copy().values():
            _hand_over(server)
        self._end()

    def drain(self, _seconds: float | None, *, queue: bool = True) -> DrainReport:  # noqa: ARG002 - each lifecycle sets its own time
        """Drain each server for the time that its own lifecycle sets; return the reports as one."""
        self.stop()
        servers, reports = list(self.ever), list[DrainReport]()
        with self._wakeup.woken_by_signals():
            for server in servers:
                threading.Thread(target=self._stop_one, args=(server, reports), daemon=True).start()
            while len(reports) < len(servers):
                self._wakeup.wait()
        return DrainReport(
            sum(report.finished for report in reports),
            sum(report.forced for report in reports),
            tuple(stuck for report in reports for stuck in report.stuck),
        )

    # reloading

    def reload(self) -> None:
        """Request a reload: the main thread reads the configuration again and applies it if valid. Safe in a signal handler."""
        self._reloads = True
        self._wakeup.wake()

    def _reload(self) -> None:
        with reloading():
            self._replace(self._read())
            notify.ready()

    def _replace(self, compositions: Mapping[str, Composition]) -> None:
        """Serve these compositions. Unchanged servers are left alone; a replacement starts before the old server ends.

        Raises: any error that prevents serving them; nothing has changed then.
        """
        changed = {key: parts for key, parts in compositions.items() if self._compositions.get(key) != parts}
        leaving = {key: server for key, server in self._servers.items() if key in changed or key not in compositions}
        coming = compose(changed, self._watch)
        with activation.offering(listener.socket for server in leaving.values() for listener in listeners(server)):
            _start(coming.values())
        self._compositions = compositions
        self._servers.update(coming)
        for key in self._servers.keys() - compositions.keys():
            del self._servers[key]
        self.ever += coming.values()
        for each in self._rounds:
            each.renew()
        self.renew()
        for key, server in leaving.items():
            _hand_over(server, "replaced" if key in changed else "removed")
            threading.Thread(target=self._see_off, args=(server,), daemon=True).start()
        if not changed and not leaving:
            log.warning("reload found no changes in the configuration")

    def _see_off(self, server: Server) -> None:
        """Wait until a replaced server has ended, and close it."""
        report = server.stop()
        server.server_close()  # for a lifecycle that leaves its listeners open
        if server.state is State.STOPPED and not (report and report.stuck):
            self.ever.remove(server)

    # inside

    def _stop_one(self, server: Server, reports: list[DrainReport]) -> None:
        report = DrainReport()
        try:
            report = server.stop() or report
        finally:
            reports.append(report)
            self._wakeup.wake()

    def _started(self, server: Server) -> None:
        """Add the rounds to a server's run. Called in the server's own thread, before its loop runs."""
        run = run_of(server)
        for each in self._rounds:
            if run is not None and each.every is not None:
                run.on_ready(partial(each.heard_of, server), each.every)

    def _ended(self, server: Server) -> None:
        if server in self._servers.copy().values():  # the main thread may change it
            self._end()

    def _end(self) -> None:
        self._over = True
        self._wakeup.wake()


@attrs.define(eq=False)
class _Round:
    """Calls `callback` once at the start, then each time every server has reported since the last call."""

    _callback: Callable[[], None]
    every: float | None
    _servers: dict[str, Server]
    _begun: bool = attrs.field(default=False, init=False)
    _silent: set[Server] = attrs.field(factory=set, init=False)
    _changing: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self.renew()

    def begin(self) -> None:
        self._callback()
        self._begun = True

    def renew(self) -> None:
        """Wait for all servers again, because a reload has changed them."""
        with self._changing:
            self._silent = set(self._servers.copy().values())

    def heard_of(self, server: Server) -> None:
        """Record that this server takes requests. Called by its loop."""
        with self._changing:
            self._silent.discard(server)
            if self._silent or not self._begun:
                return
            self._silent = set(self._servers.copy().values())
        self._callback()


@contextmanager
def reloading() -> Iterator[None]:
    """Report to the service manager that a reload is under way. An error in the block is reported and logged, not raised."""
    notify.reloading()
    try:
        yield
    except Exception as error:  # noqa: BLE001 - serving goes on, whatever is wrong with the configuration
        problem = "; ".join(str(error).splitlines())
        log.error("reload failed; nothing changes: %s", problem)  # noqa: TRY400 - the message is enough
        notify.send("READY=1", f"STATUS=reload failed: {problem}")


def _start(servers: Iterable[Server]) -> None:
    """Start all servers or none; all are bound before the first one serves."""
    with ExitStack() as opened:
        for server in servers:
            opened.enter_context(server)
        for server in servers:
            server.start()
        opened.pop_all()


def _hand_over(server: Server, how: str = "") -> None:
    """Hand a server over. how: what a reload does to it, which is then said."""
    run = run_of(server)
    if run is not None:  # None if it has just ended by itself
        run.hand_over()
        if how:
            log.announce("%s is %s: %s", engine_of(server).label, how, run.in_work())
