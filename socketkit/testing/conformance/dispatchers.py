"""What a dispatcher promises: see `socketkit.seams.Dispatcher`, `socketkit.seams.Dispatch` and `socketkit.seams.Drive`."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

from socketkit.errors import IncompatibleError
from socketkit.handlers.base import unwrapped
from socketkit.lifecycles.graceful import Graceful
from socketkit.seams import DrainReport, Parking, State
from socketkit.seams.limits import Limits
from socketkit.server import Server
from socketkit.testing.conformance.commands import AsyncCommands, Client, Commands, Lines, Mirror, client
from socketkit.testing.conformance.promises import Report, applies_if, check, expect
from socketkit.testing.conformance.recipes import RecipeConformance
from socketkit.testing.leaks import Account
from socketkit.transports.tcp import TCP
from socketkit.transports.udp import UDP


class DispatcherConformance(RecipeConformance):
    """The promises of a dispatcher, most of them tried with a server and real clients on the loopback interface."""

    seam: ClassVar[str] = "dispatcher"

    # what it is

    def test_shape(self) -> None:
        """`start` returns a live part with `dispatch` or `drive`, and with `wait` and `close`."""
        with self._live() as live:
            expect(hasattr(live, "dispatch") or hasattr(live, "drive"), f"a {type(live).__name__} has neither dispatch nor drive")
            for name in ("wait", "close"):
                expect(callable(getattr(live, name, None)), f"a {type(live).__name__} has no method {name}")

    def test_idle_wait(self) -> None:
        """`wait` returns True at once when nothing runs, and `close` may be called twice."""
        with self._live() as live:
            waited = self.at_once(lambda: live.wait(None), "wait(None) with nothing running")
            expect(waited is True, f"wait(None) with nothing running returned {waited!r}, not True")
            self.at_once(live.close, "close()")

    def test_parking(self) -> None:
        """`parking`, if it has one, is a `Parking` or None."""
        with self._live() as live:
            parking = getattr(live, "parking", None)
            expect(parking is None or isinstance(parking, Parking), f"parking is {parking!r}")

    def test_narrow(self) -> None:
        """`narrow`, if it has one, returns limits that are no wider than those of the server."""
        with self._live() as live:
            applies_if(hasattr(live, "narrow"), "it has no narrow()")
            for most in (None, 2, 1000):
                narrowed = live.narrow(Limits(max_connections=most)).max_connections
                expect(most is None or (narrowed is not None and narrowed <= most), f"narrow() made max_connections={most} {narrowed}")

    def test_check(self) -> None:
        """`check`, if it has one, accepts a handler or refuses it with IncompatibleError."""
        recipe = self.make()
        applies_if(hasattr(recipe, "check"), "it has no check()")
        for handler in (Commands, AsyncCommands, Lines, Mirror, functools.partial(Commands), lambda *_: None):
            with contextlib.suppress(IncompatibleError):
                recipe.check(unwrapped(handler))

    # running requests

    def test_answers(self) -> None:
        """Each request is run once, answered, closed and counted."""
        with self._serving() as server:
            for number in range(20):
                self._is_served(server, str(number))
            self._counts(server, finished=20)

    def test_all_at_once(self) -> None:
        """Clients that come at the same time are all answered."""
        count = 30
        with self._serving() as server, ThreadPoolExecutor(count) as clients:
            answers = list(clients.map(lambda number: self._ask(server, f"echo {number}"), range(count)))
            expect(answers == [str(number) for number in range(count)], f"{count} clients were answered {answers}")
            self._counts(server, finished=count)

    def test_error(self) -> None:
        """A handler that raises fails its own request and no other."""
        self._survives("raise")

    def test_exit(self) -> None:
        """A handler that raises SystemExit ends its own request and nothing else."""
        self._survives("exit")

    def test_closed_by_handler(self) -> None:
        """A handler may close its socket itself."""
        self._survives("close")

    def test_client_leaves(self) -> None:
        """A client that leaves before it is answered harms nobody."""
        with self._serving() as server:
            with client(server.addresses[0], self.patience) as leaving:
                leaving.tell("hold")
                leaving.hear()
            self._is_served(server)
            self._settles(server)

    def test_conversation(self) -> None:
        """The requests of a conversation are answered in order, one by one and several at a time."""
        with self._serving(Lines) as server, client(server.addresses[0], self.patience) as talking:
            for number in range(20):
                expect((answer := talking.ask(str(number))) == str(number), f"request {number} of a conversation was answered {answer!r}")
            talking.tell("a", "b", "c")
            answers = [talking.hear() for _ in range(3)]
            expect(answers == ["a", "b", "c"], f"three requests in one piece were answered {answers}")

    def test_silent_clients(self) -> None:
        """If it parks connections, clients that say nothing take no thread from others."""
        with self._live() as live:
            applies_if(getattr(live, "parking", None) is not None, "it has no parking")
        with self._serving(Lines) as server, contextlib.ExitStack() as silent:
            for _ in range(100):
                silent.enter_context(client(server.addresses[0], self.patience))
            with client(server.addresses[0], self.patience) as talking:
                expect(talking.ask("hello") == "hello", "beside 100 silent clients, another one was not answered")

    def test_datagrams(self) -> None:
        """Datagrams are run and answered."""
        applies_if("datagram" in getattr(self.make(), "kinds", ("datagram",)), "its kinds have no datagram")
        self._accepts(Mirror)
        with self._serving(Mirror, UDP("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(self.patience)
            asking.connect(server.addresses[0])
            for number in range(20):
                asking.send(b"%d" % number)
                expect(asking.recv(100) == b"%d" % number, f"datagram {number} was not answered")
            self._counts(server, finished=20)

    def test_async(self) -> None:
        """If it runs asynchronous handlers, it awaits them."""
        applies_if(getattr(self.make(), "runs_async", False), "it does not declare runs_async")
        with self._serving(AsyncCommands) as server:
            self._is_served(server)
            self._counts(server, finished=1)

    # stopping

    def test_drain_waits(self) -> None:
        """A drain waits for requests that run."""
        with self._serving() as server, client(server.addresses[0], self.patience) as holding:
            self._hold(holding)
            with self._stopping(server, self.patience) as stopped:
                answer = holding.ask("go on")
                expect(answer == "done", f"a request that ran when the drain began was answered {answer!r}, not 'done'")
                report = stopped.result(self.patience)
            expect(report.forced == 0 and not report.stuck, f"the drain ended {report}; it had time for its one request")

    def test_drain_ends(self) -> None:
        """A drain ends at its deadline, and with it the requests that still run."""
        with self._serving() as server, client(server.addresses[0], self.patience) as holding:
            self._hold(holding)
            with self._stopping(server, 0.1) as stopped:
                report = stopped.result(self.patience)
            expect(not report.stuck, f"a handler that reads from its client is still running after the drain: {report}")
            expect(holding.hear() == "", "the connection of a request that was forced to end is still open")

    def test_queue(self) -> None:
        """A stop loses nobody who connected before it, though every worker may be busy."""
        with self._serving() as server, client(server.addresses[0], self.patience) as holding, contextlib.ExitStack() as waiting:
            self._hold(holding)
            queued = [waiting.enter_context(client(server.addresses[0], self.patience)) for _ in range(5)]
            for number, each in enumerate(queued):
                each.tell(f"echo {number}")
            with self._stopping(server, self.patience):
                holding.tell("go on")
                answers = [each.hear() for each in queued]
            expect(
                answers == [str(number) for number in range(5)], f"five clients that waited when the drain began were answered {answers}"
            )

    def test_stop_from_a_handler(self) -> None:
        """A handler may stop its server, and is answered."""
        recipe = self.make()
        forks = any(getattr(each, "forks_requests", False) for each in (recipe, getattr(recipe, "inner", None)))
        applies_if(not forks, "its handlers run in child processes, which have only copies of the server")
        with self._serving() as server:
            answer = self._ask(server, "stop")
            expect(answer == "stopping", f"a handler that stops its server answered {answer!r}")
            self.until(lambda: server.state is State.STOPPED, "the server had not stopped {seconds} s after a handler stopped it")

    def test_starts_again(self) -> None:
        """A server that was stopped can be started again, on new live parts or on the same one."""
        with self._serving() as server:
            for _ in range(2):
                self._is_served(server)
                server.stop()
                server.start()
            self._is_served(server)

    def test_leaves_nothing(self) -> None:
        """After the server is closed, no thread, process, descriptor or signal handler is left."""
        self._warm_up()
        before = Account.take()
        with self._serving() as server:
            self._is_served(server)
        left = before.left_since()
        expect(not left, f"after the server was closed there is still: {'; '.join(left)}")

    # inside

    def _handler(self) -> Any:
        """Return the blocking handler, or the asynchronous one for a dispatcher that runs no other."""
        recipe = self.make()
        try:
            if hasattr(recipe, "check"):
                recipe.check(Commands)
        except IncompatibleError:
            applies_if(getattr(recipe, "runs_async", False), "it refuses the handlers of this check")
            return AsyncCommands
        return Commands

    def _accepts(self, handler: Any) -> None:
        recipe = self.make()
        if hasattr(recipe, "check"):
            try:
                recipe.check(handler)
            except IncompatibleError as error:
                applies_if(False, str(error))

    @contextlib.contextmanager
    def _serving(self, handler: Any = None, transport: Any = None) -> Iterator[Server]:
        if handler is None:
            handler = self._handler()
        self._accepts(handler)
        transport = transport or TCP("127.0.0.1", 0)
        server = Server(transport, handler, dispatcher=self.make(), lifecycle=Graceful(drain=self.patience))
        with server:
            self.at_once(server.start, "the start of a server")
            yield server
            self.at_once(server.server_close, "closing the server")

    @contextlib.contextmanager
    def _live(self) -> Iterator[Any]:
        live = self.make().start(_Idle(self._handler()))
        try:
            yield live
        finally:
            self.at_once(live.close, "close()")

    def _warm_up(self) -> None:
        """Have imports and caches that stay for good made before resources are counted."""
        with self._serving() as server:
            self._is_served(server)

    def _ask(self, server: Server, command: str) -> str:
        with client(server.addresses[0], self.patience) as asking:
            return asking.ask(command)

    def _is_served(self, server: Server, text: str = "hello") -> None:
        answer = self._ask(server, f"echo {text}")
        expect(answer == text, f"a client that sent {text!r} was answered {answer!r}")

    def _hold(self, holding: Client) -> None:
        answer = holding.ask("hold")
        expect(answer == "held", f"a request was answered {answer!r}, not 'held'")

    def _survives(self, command: str) -> None:
        with self._serving() as server:
            for _ in range(3):
                answer = self._ask(server, command)
                expect(answer == "", f"a handler that was told to {command} answered {answer!r}")
                self._is_served(server)
            self._settles(server)
            stats = server.stats()
            expect(stats.accepted == 6, f"of 6 requests, {stats.accepted} were counted: {stats}")  # noqa: PLR2004 - three times two

    def _settles(self, server: Server) -> None:
        self.until(lambda: server.stats().active == 0, "after all clients have left, {seconds} s later, requests still count as active")

    def _counts(self, server: Server, **outcomes: int) -> None:
        self._settles(server)
        found = dict(server.stats().outcomes)
        expect(found == outcomes, f"the requests were counted as {found}, not {outcomes}")

    @contextlib.contextmanager
    def _stopping(self, server: Server, drain: float) -> Iterator[Future[DrainReport]]:
        """Stop the server in another thread, and yield the report to come once the server drains."""
        with ThreadPoolExecutor(1) as stopper:
            stopped: Future[Any] = stopper.submit(server.stop, drain)
            self.until(lambda: not server.ready, "{seconds} s after stop() the server still takes requests")
            yield stopped


class _Idle:
    """The work of a server that has none: enough to start and close a live part."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"start() or close() used work.{name}, which is for requests")


def check_dispatcher(make: Callable[[], Any], *, only: str | None = None) -> Report:
    """Check a dispatcher and return the report.

    make: returns a new recipe. only: the method of a single promise, such as ``test_drain_waits``.
    Raises: NotConformingError, whose message is the report, if it breaks a promise.
    """
    return check(DispatcherConformance, make, only)
