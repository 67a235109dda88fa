"""The engine of classic servers. Apart from their classes, which many programs import that never make a server."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Callable

from socketkit._engine.engine import Engine
from socketkit._engine.override import Override
from socketkit._engine.sources import ClassicSource
from socketkit._engine.steps import replaces
from socketkit._system.children import keep_private
from socketkit._system.logs import write
from socketkit.handlers.base import unwrapped

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

    from socketkit._engine.run import Run
    from socketkit._engine.work import StartedDispatcher
    from socketkit.seams import Address, Dispatcher, DrainReport, Lifecycle, Request, Serving
    from socketkit.seams.limits import Limits

_EXIT_PACE = 0.02
"""Seconds between two checks, at the end of the program, whether requests still run."""


class _OnlyTheLoop:
    """What `socketkit.lifecycles.classic.Classic` does, without importing attrs."""

    def serve(self, serving: Serving) -> DrainReport | None:
        serving.run()
        return None


_ONLY_THE_LOOP = _OnlyTheLoop()


_BOUND = "_socketkit_bound"
"""The instance attribute for the name under which a server's socket is passed on: what the server was told to bind."""


def inherited(server: Any) -> socket.socket | None:
    """Return the socket that the previous generation of this program passes on for what the server is about to bind; None without one.

    Not a Unix socket: programs remove its path themselves, at their end or before they bind, and so would take it from each other.
    """
    if server.address_family not in {socket.AF_INET, socket.AF_INET6}:
        return None
    from socketkit._system import activation  # noqa: PLC0415 - for programs with a lifecycle only, as it imports attrs

    name = vars(server)[_BOUND] = f"socketserver:{server.address_family:d}:{server.socket_type:d}:{server.server_address!r}"
    sock = activation.claim(name)
    if sock is not None:
        os.set_blocking(sock.fileno(), False)  # the previous generation may take the request that the selector just reported, or this one
    return sock


def limit_stalls(server: Any) -> None:
    """Limit how long sends on the connections of a server may stall, as the program was told."""
    from socketkit._engine import deadlines  # noqa: PLC0415 - for programs with limits only

    if Override.limits is not None and Override.limits.write_stall is not None:
        deadlines.limit_stalls(server, server.get_request, Override.limits.write_stall)


class ClassicEngine(Engine):
    """The engine of a classic server. It has a live dispatcher only if the process-wide override has a dispatcher or a lifecycle.

    turn: as the method. new_selector: returns a selector, of the class that the program may have put into the module of the classic names.
    accept_of: returns a function of a server that accepts a request without ever blocking; None if it has none.
    """

    discards_unread = False

    def __init__(
        self,
        server: Any,
        turn: Callable[[], Callable[[], object] | None],
        new_selector: Callable[[], Any],
        accept_of: Callable[[Any], Callable[[], tuple[Request, Address]] | None],
    ) -> None:
        super().__init__(server, _adaptive)
        self._turn = turn
        self._new_selector = new_selector
        self._accept_of = accept_of

    def begin_request(self, request: Request, client_address: Address) -> None:
        """Run the request through the hooks. It enters the ledger only if a dispatcher or lifecycle was chosen, which need it."""
        if Override.is_set:
            super().begin_request(request, client_address)
            return
        server = self.server
        try:
            if server.verify_request(request, client_address):
                server.process_request(request, client_address)
            else:
                server.shutdown_request(request)
        except Exception:  # noqa: BLE001 - handle_error gets every error
            try:
                server.handle_error(request, client_address)
            finally:
                server.shutdown_request(request)
        except BaseException:
            server.shutdown_request(request)
            raise

    def confines(self, error: BaseException) -> bool:
        """Follow the template while `serve_forever` runs; otherwise let the error reach the caller, as in the standard library."""
        return self.run is not None and super().confines(error)

    @property
    def lifecycle(self) -> Lifecycle:
        return Override.lifecycle or _ONLY_THE_LOOP

    @property
    def limits(self) -> Limits | None:
        return Override.limits

    @property
    def address(self) -> str:
        server = self.server
        return f"{type(server).__name__} at {getattr(server, 'server_address', None)}"

    @property
    def is_interruptible(self) -> bool:
        return not hasattr(self.server, "block_on_close")  # which the mix-ins have, whose requests survive a Ctrl-C

    def recipe(self) -> Dispatcher | None:
        chosen: Any = Override.dispatcher
        if chosen is None:
            return self.server._own_dispatcher()  # type: ignore[no-any-return] # noqa: SLF001 - a server and its engine form one unit
        daemon = getattr(self.server, "daemon_threads", False) and hasattr(chosen, "daemonized")
        return chosen.daemonized() if daemon else chosen  # type: ignore[no-any-return]

    def start_dispatcher(self) -> StartedDispatcher | None:
        return super().start_dispatcher() if Override.is_set else None

    def prepare(self) -> None:
        super().prepare()
        sock, bound = getattr(self.server, "socket", None), vars(self.server).get(_BOUND)
        if bound is not None and isinstance(sock, socket.socket):  # not before, as the program may have put another in its place
            from socketkit._system import activation  # noqa: PLC0415 - as above

            activation.listens(bound, sock)
        if Override.stats:
            atexit.unregister(self._say_stats)
            atexit.register(self._say_stats)  # before what is registered next, so called after it
        if self.live is not None:
            atexit.unregister(self._await_requests)  # of an earlier run
            atexit.register(self._await_requests)  # after what the dispatcher has registered, so called before it

    def finish(self, run: Run) -> None:
        super().finish(run)
        if not self._has_requests():
            atexit.unregister(self._await_requests)

    def close(self, seconds: float | None, *, wait: bool = True) -> None:
        super().close(seconds, wait=wait)
        atexit.unregister(self._await_requests)

    def _has_requests(self) -> bool:
        """Return whether handlers run. Connections that wait without a thread have none."""
        return any(entry.thread is not None for entry in self.ledger.active())

    def _await_requests(self) -> None:
        """Wait at the end of the program until no request runs, as the interpreter waits for the threads of a `ThreadingMixIn`.

        The threads of most dispatchers are daemons, because they also wait for requests. Does nothing if the mix-in's would be, too.
        """
        run = self.run or self._undrained
        if run is None or run.is_elsewhere or getattr(self.server, "daemon_threads", True):
            return
        while self.run is not None and self._has_requests():
            run.done.wait(_EXIT_PACE)
        if self.run is None and self.live is not None:
            self.live.wait(None)

    def sources(self, run: Run) -> list[ClassicSource]:
        server, live = self.server, self.start_dispatcher()
        turn = server._take_turn if replaces(server, "_handle_request_noblock") else None  # noqa: SLF001 - as above
        accept = self._accept_of(server) if live is not None and live.drive is not None else None
        source = ClassicSource(server, live, turn, accept)
        if Override.limits is not None and live is not None:
            self._limit(source, live, Override.limits, run)
        return [source]

    def _limit(self, source: ClassicSource, live: StartedDispatcher, limits: Limits, run: Run) -> None:
        """Apply the limits that a program was given to a source."""
        import attrs  # noqa: PLC0415 - for programs with limits only

        from socketkit._engine.admission import Admission  # noqa: PLC0415 - as above
        from socketkit._engine.deadlines import Deadlines  # noqa: PLC0415 - as above

        server = self.server
        limits = limits.shared_by(getattr(self.recipe(), "processes", 1))
        limits = limits if live.narrow is None else live.narrow(limits)
        source.counted = getattr(server, "socket_type", None) == socket.SOCK_STREAM
        if source.parking is not None and limits.idle is not None:
            source.parking = attrs.evolve(source.parking, idle=limits.idle)
        if Admission.is_needed(limits, counted=source.counted):
            source.admission = Admission(limits, self.ledger, [source])
        if not source.counted:
            return
        timed = attrs.evolve(limits, write_stall=limits.write_stall if source.layers else None)  # otherwise the system keeps it
        if live.cut is not None:
            timed = attrs.evolve(timed, first_byte=None, handshake=None, write_stall=None)  # which each child keeps itself
        if Deadlines.are_needed(timed):
            source.deadlines = Deadlines(timed, self.ledger, run.call_later, speaks_first=self._speaks_first, cut=live.cut)

    def _speaks_first(self) -> bool:
        return bool(getattr(unwrapped(self.server.RequestHandlerClass), "speaks_first", False))

    def forget_parent(self, request: Request) -> None:
        super().forget_parent(request)
        if Override.limits is not None:
            from socketkit._engine.deadlines import keep_in_child  # noqa: PLC0415 - as above

            keep_in_child(Override.limits, self.ledger, request, speaks_first=self._speaks_first)

    def _say_stats(self) -> None:
        """Write at the end of the program how the requests ended."""
        stats = self.ledger.stats()
        ended = ", ".join(f"{count} {outcome}" for outcome, count in stats.outcomes.items())
        write(sys.stderr, f"{self.label}: {stats.accepted} accepted" + (f": {ended}" if ended else "") + "\n")

    def selector(self) -> Any:
        return self._new_selector()

    def turn(self) -> Callable[[], object] | None:
        return self._turn()

    def is_closed(self) -> bool:
        return self.server.fileno() == -1  # type: ignore[no-any-return]

    def close_listeners(self, *, streams_only: bool = False) -> None:
        sock = getattr(self.server, "socket", None)  # a program's own kind of server may have none, and closes what it has itself
        if sock is not None and not (streams_only and sock.type == socket.SOCK_DGRAM):
            sock.close()

    def become_replica(self, *parts: Any) -> Run:
        os.set_blocking(self.server.fileno(), False)  # another worker may take the request that the selector just reported
        sock = getattr(self.server, "socket", None)
        if isinstance(sock, socket.socket) and sock.type == socket.SOCK_STREAM:
            keep_private(sock)  # what a handler forks may outlive this process, and must not hold the port
        return super().become_replica(*parts)


def _adaptive() -> Dispatcher:
    from socketkit.dispatchers.adaptive import Adaptive  # noqa: PLC0415 - few programs need it

    return Adaptive()
