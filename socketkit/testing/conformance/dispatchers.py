"""What a dispatcher promises: see `socketkit.seams.Dispatcher`, `socketkit.seams.Dispatch` and `socketkit.seams.Drive`."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, ClassVar

from socketkit.errors import IncompatibleError
from socketkit.lifecycles.classic import Classic
from socketkit.lifecycles.graceful import Graceful
from socketkit.seams import DrainReport, Parking, State
from socketkit.seams.limits import Limits
from socketkit.server import Server
from socketkit.testing.conformance.commands import (
    AsyncCommands,
    Client,
    Commands,
    Lines,
    MessageCommands,
    Mirror,
    Repeat,
    client,
)
from socketkit.testing.conformance.promises import BrokenPromiseError, DoesNotApplyError, Report, applies_if, check, expect
from socketkit.testing.conformance.recipes import RecipeConformance, check_handlers
from socketkit.testing.conformance.spies import Notes, Spied
from socketkit.testing.leaks import Account
from socketkit.transports.tcp import TCP
from socketkit.transports.udp import UDP

CROWD = 50
"""Clients that come at once where a dispatcher should have no room for all of them."""


class DispatcherConformance(RecipeConformance):
    """The promises of a dispatcher, most of them tried with a server and real clients on the loopback interface.

    For a dispatcher whose event loop is not asyncio's, set `async_commands`. To have everything tried with asynchronous handlers, derive
    a second class, and set `commands` and `mirror` too.
    """

    seam: ClassVar[str] = "dispatcher"

    commands: Any = None
    """The handler of most checks, which does what a client says. None: a blocking one, or `async_commands` if the dispatcher runs no other."""
    async_commands: Any = AsyncCommands
    """The asynchronous one: a class derived from `Obeys`, and from a handler of the library whose event loop the dispatcher has."""
    mirror: Any = Mirror
    """The handler of datagrams, which answers each with itself."""

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
        handlers = (
            Commands,
            self.async_commands,
            MessageCommands,
            Lines,
            self.mirror,
            Repeat,
            functools.partial(Commands),
            lambda *_: None,
        )
        check_handlers(self.make(), handlers, IncompatibleError)

    def test_kinds(self) -> None:
        """`kinds`, if it has them, are "stream", "datagram" or both."""
        kinds = getattr(self.make(), "kinds", ("stream",))
        expect(kinds and not set(kinds) - {"stream", "datagram"}, f"kinds is {kinds!r}")

    def test_processes(self) -> None:
        """If it declares `forks_workers`, `processes` is their number."""
        recipe = self.make()
        applies_if(getattr(recipe, "forks_workers", False), "it does not declare forks_workers")
        processes = getattr(recipe, "processes", None)
        expect(isinstance(processes, int) and processes > 0, f"processes is {processes!r}; it must be the number of worker processes")

    def test_interpreters(self) -> None:
        """If it declares `interpreters`, that is the number of interpreters that serve, and the main one does not."""
        recipe = self.make()
        applies_if(hasattr(recipe, "interpreters"), "it does not declare interpreters")
        number = recipe.interpreters
        expect(isinstance(number, int) and number > 0, f"interpreters is {number!r}; it must be the number of interpreters that serve")
        with self._serving() as server:
            found = {self._ask(server, "interpreter") for _ in range(5)}
        expect("0" not in found, "a request ran in the main interpreter")

    def test_daemonized(self) -> None:
        """`daemonized`, if it has one, returns a recipe of a dispatcher."""
        recipe = self.make()
        applies_if(hasattr(recipe, "daemonized"), "it has no daemonized()")
        found = recipe.daemonized()
        expect(callable(getattr(found, "start", None)), f"daemonized() returned {found!r}, which has no start()")

    # called by hand

    def test_force(self) -> None:
        """`force`, if it has one, does not wait, and may be called when nothing runs."""
        with self._live() as live:
            applies_if(hasattr(live, "force"), "it has no force()")
            self.at_once(live.force, "force()")

    def test_unshare(self) -> None:
        """`unshare`, if it has one, returns at once when no process holds a copy of the listeners."""
        with self._live() as live:
            applies_if(hasattr(live, "unshare"), "it has no unshare()")
            self.at_once(live.unshare, "unshare()")

    def test_wait(self) -> None:
        """`wait` returns False while a dispatched request runs, and True once it has ended."""
        with self._dispatching() as (live, work):
            applies_if(not getattr(live, "inline", False), "it runs requests in the thread that calls dispatch()")
            ours, theirs = socket.socketpair()
            with ours, theirs:
                live.dispatch(ours, "")
                early = live.wait(0.05)
                expect(early is False, f"wait(0.05) beside a running request returned {early!r}, not False")
                theirs.sendall(b"x")
                late = self.at_once(lambda: live.wait(None), "wait(None) once the request has ended")
                expect(late is True, f"wait(None) returned {late!r}, not True")
                del work

    def test_inline(self) -> None:
        """`inline` is true if `dispatch` runs the request in the thread that calls it, and only then."""
        with self._dispatching() as (live, work):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                theirs.sendall(b"x")
                live.dispatch(ours, "")
                found, declared = threading.get_ident() in work.threads, bool(getattr(live, "inline", False))
                self.at_once(lambda: live.wait(None), "wait(None) once the request has ended")
                where = "the calling thread" if found else "another place"
                expect(found == declared, f"dispatch() ran the request in {where}, and inline is {declared}")

    def test_adapt(self) -> None:
        """`adapt`, if it has one, returns a request that owns the one passed in: closing it closes the connection."""
        with self._live() as live:
            applies_if(hasattr(live, "adapt"), "it has no adapt()")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.at_once(lambda: self._adapt(ours), "adapt() and close()")
            theirs.settimeout(self.patience)
            try:
                theirs.recv(1)
            except TimeoutError:
                expect(False, "after the request that adapt() returned was closed, the connection is still open")

    # taking requests

    def test_take(self) -> None:
        """If it drives, one thread at a time is inside `take`, and none when it closes the intake."""
        with self._watched("drive") as (server, notes):
            try:
                for number in range(20):
                    self._is_served(server, str(number))
            finally:
                notes.check()  # first, because a fault here may be why a client had no answer
            self.at_once(server.stop, "stop()")
        notes.check()

    def test_take_raises(self) -> None:
        """If it drives, an error of `take` ends `drive`, which raises it."""
        with self._watched("drive") as (server, notes):
            self._is_served(server)
            notes.error = RuntimeError("take() of a check raises this on purpose")
            with client(server.addresses[0], self.patience) as next_one:
                next_one.tell("echo hello")  # so that take() returns, and is called once more
                self.until(lambda: server.state is State.FAILED, "{seconds} s after take() has raised, the server has not failed")

    def test_units(self) -> None:
        """If it drives, it calls each unit that it takes, and only once."""
        with self._watched("drive") as (server, notes):
            for number in range(20):
                self._is_served(server, str(number))
            self._settles(server)
            wrong = sorted({count for count in notes.calls.values() if count != 1})
            expect(not wrong, f"of {notes.taken} units, some were called {' or '.join(map(str, wrong))} times")

    def test_room(self) -> None:
        """If it drives, it takes no unit that it has no room to run: clients wait in the kernel's queue instead."""
        with self._watched("drive") as (server, notes), contextlib.ExitStack() as stack:
            for _ in range(CROWD):
                stack.enter_context(client(server.addresses[0], self.patience)).tell("hold")
            self.until(lambda: notes.taken, "{seconds} s after clients have come, none of their requests has been taken")
            time.sleep(0.1)  # for what should not happen
            self.until(
                lambda: notes.called == notes.taken, "{seconds} s after a request was taken, it waits because there is no room to run it"
            )

    def test_max_handlers(self) -> None:
        """`max_handlers`, if it has one, returns the most handlers that run at once, or None."""
        recipe = self.make()
        applies_if(hasattr(recipe, "max_handlers"), "it has no max_handlers()")
        most = recipe.max_handlers(self.commands)
        expect(most is None or (isinstance(most, int) and most > 0), f"max_handlers() returned {most!r}; it must be a number, or None")
        if most is None or most >= CROWD:
            return
        with self._serving() as server, contextlib.ExitStack() as stack:
            everyone = [stack.enter_context(client(server.addresses[0], self.patience)) for _ in range(CROWD)]
            for each in everyone:
                each.tell("hold")
            self.until(lambda: any(each.is_answered for each in everyone), "{seconds} s after clients have come, no handler runs")
            time.sleep(0.1)  # for what should not happen
            found = sum(each.is_answered for each in everyone)
            expect(found <= most, f"{found} handlers ran at once, and max_handlers() returned {most}")

    def test_watch(self) -> None:
        """If it has `attach`, it stops watching each descriptor before it closes it."""
        with self._watched("attach") as (server, notes):
            for number in range(5):
                self._is_served(server, str(number))
            self._settles(server)
            self.at_once(server.stop, "stop()")
        notes.check()
        expect(not notes.watched, f"{len(notes.watched)} descriptors are still watched after the server has stopped")

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
        self._survives("raise", "failed")

    def test_exit(self) -> None:
        """A handler that raises SystemExit ends its own request and nothing else."""
        self._survives("exit", "failed")

    def test_closed_by_handler(self) -> None:
        """A handler may close its socket itself."""
        self._survives("close", "finished")

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
        self._parks()
        with self._serving(Lines) as server, contextlib.ExitStack() as silent:
            for _ in range(100):
                silent.enter_context(client(server.addresses[0], self.patience))
            with client(server.addresses[0], self.patience) as talking:
                expect(talking.ask("hello") == "hello", "beside 100 silent clients, another one was not answered")

    def test_datagrams(self) -> None:
        """Datagrams are run and answered."""
        with self._serving(self.mirror, UDP("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(self.patience)
            asking.connect(server.addresses[0])
            for number in range(20):
                asking.send(b"%d" % number)
                try:
                    answer = asking.recv(100)
                except TimeoutError:
                    expect(False, f"datagram {number} had no answer after {self.patience:g} s")
                expect(answer == b"%d" % number, f"datagram {number} was answered {answer!r}")
            self._counts(server, finished=20)

    def test_due(self) -> None:
        """If it parks connections, those that are idle for too long are closed, though no descriptor announces it."""
        self._parks()
        with self._serving(Lines, limits=Limits(idle=0.2)) as server, client(server.addresses[0], self.patience) as talking:
            talking.ask("hello")
            expect(talking.hear() == "", "a connection was not closed when its idle time was over")

    def test_forks_requests(self) -> None:
        """If it declares `forks_requests`, each request runs in a process of its own."""
        applies_if(getattr(self.make(), "forks_requests", False), "it does not declare forks_requests")
        with self._serving() as server:
            processes = {str(os.getpid()), *(self._ask(server, "process") for _ in range(3))}
        expect(len(processes) == 4, f"three requests and the server ran in the processes {', '.join(sorted(processes))}")  # noqa: PLR2004

    def test_async(self) -> None:
        """If it runs asynchronous handlers, it awaits them."""
        recipe = self.make()
        applies_if(getattr(recipe, "runs_async", False), "it does not declare runs_async")
        library, found = (getattr(each, "async_library", "asyncio") for each in (recipe, self.async_commands))
        applies_if(
            library == found, f"it awaits handlers of {library}, and async_commands is one of {found}; set it in a class of the checks"
        )
        with self._serving(self.async_commands) as server:
            self._is_served(server)
            self._counts(server, finished=1)

    def test_cut(self) -> None:
        """`cut`, if it has one, ends a request that has taken longer than its limit allows."""
        with self._live() as live:
            applies_if(hasattr(live, "cut"), "it has no cut()")
        with self._serving(limits=Limits(request=0.2)) as server, client(server.addresses[0], self.patience) as holding:
            self._hold(holding)
            expect(holding.hear() == "", "a request went on after its time was over")
            self._settles(server)

    def test_two_servers(self) -> None:
        """Two servers with one recipe serve at the same time, and the end of one leaves the other alone."""
        recipe = self.make()
        with self._serving(recipe=recipe) as one:
            with self._serving(recipe=recipe) as other:
                for server in (one, other, one):
                    self._is_served(server)
            self._is_served(one)

    # stopping

    def test_drain_waits(self) -> None:
        """A drain waits for requests that run."""
        with self._serving() as server, client(server.addresses[0], self.patience) as holding:
            self._hold(holding)
            with self._stopping(server, self.patience) as stopped:
                wait([stopped], 0.1)
                expect(not stopped.done(), "the drain ended while a request was still running and had time to end")
                answer = holding.ask("go on")
                expect(answer == "done", f"a request that ran when the drain began was answered {answer!r}, not 'done'")
                report = self._report(stopped)
            expect(report.forced == 0 and not report.stuck, f"the drain ended {report}; it had time for its one request")

    def test_drain_ends(self) -> None:
        """A drain ends at its deadline, and with it the requests that still run."""
        with self._serving() as server, client(server.addresses[0], self.patience) as holding:
            self._hold(holding)
            with self._stopping(server, 0.1) as stopped:
                report = self._report(stopped)
            expect(not report.stuck, f"a handler that reads from its client is still running after the drain: {report}")
            expect(holding.hear() == "", "the connection of a request that was forced to end is still open")

    def test_queue(self) -> None:
        """A stop loses no client that connected before it, though every worker may be busy."""
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
        """A server that was stopped can be started again: after a drain on a new live part, else on the same one."""
        for lifecycle in (Graceful(drain=self.patience), Classic()):
            with self._serving(lifecycle=lifecycle) as server:
                for _ in range(2):
                    self._is_served(server)
                    self.at_once(server.stop, "stop()")
                    self.at_once(server.start, "the second start of a server")
                self._is_served(server)

    def test_starts_beside(self) -> None:
        """A server that is started again without a drain serves beside a request of the run before, which goes on."""
        with self._live() as live:
            applies_if(not getattr(live, "inline", False), "its requests run in the serving thread")
        applies_if(not getattr(self.make(), "forks_workers", False), "its workers end with the run")
        with self._serving(lifecycle=Classic()) as server, client(server.addresses[0], self.patience) as holding:
            self._hold(holding)
            server.stop(wait=False)
            self.until(lambda: server.state is State.STOPPED, "{seconds} s after stop(), a server without a drain has not stopped")
            self.at_once(server.start, "a start beside a request of the run before")
            self._is_served(server)
            answer = holding.ask("go on")
            expect(answer == "done", f"beside the next run, a request of the run before was answered {answer!r}, not 'done'")
            self._counts(server, finished=2)

    def test_leaves_nothing(self) -> None:
        """After the server is closed, no thread, process, descriptor or signal handler is left."""
        self._warm_up()
        before = Account.take()
        with self._serving() as server:
            self._is_served(server)
        left = before.left_since()
        expect(not left, f"after the server was closed there is still: {'; '.join(left)}")

    # inside

    def _handler(self, wanted: Any = None) -> Any:
        """Return the wanted handler, that of `commands` by default, or the first in its place that the dispatcher accepts."""
        recipe, wanted = self.make(), wanted or self.commands or Commands
        if not hasattr(recipe, "check"):
            return wanted
        others = {Commands: (self.async_commands, MessageCommands), Lines: (Repeat,), Mirror: (Repeat,)}
        refusals = []
        for each in (wanted, *others.get(wanted, ())):
            if getattr(each, "is_async", False) and not getattr(recipe, "runs_async", False):
                refusals.append("it does not declare runs_async")
                continue
            try:
                recipe.check(each)
            except IncompatibleError as error:
                refusals.append(str(error))
            else:
                return each
        raise DoesNotApplyError(f"it refuses the handlers of this check: {refusals[0]}")

    @contextlib.contextmanager
    def _serving(
        self,
        handler: Any = None,
        transport: Any = None,
        *,
        recipe: Any = None,
        lifecycle: Any = None,
        limits: Limits | None = None,
    ) -> Iterator[Server]:
        handler = self._handler(handler)
        transport, recipe = transport or TCP("127.0.0.1", 0), recipe or self.make()
        applies_if(transport.kind in getattr(recipe, "kinds", (transport.kind,)), f"its kinds have no {transport.kind}")
        server = Server(transport, handler, dispatcher=recipe, lifecycle=lifecycle or Graceful(drain=self.patience), limits=limits)
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

    def _parks(self) -> None:
        with self._live() as live:
            applies_if(getattr(live, "parking", None) is not None, "it has no parking")

    @contextlib.contextmanager
    def _dispatching(self) -> Iterator[tuple[Any, _Reading]]:
        """Yield a live part that is called for each request, and the work that it was given."""
        work = _Reading(self._handler())
        live = self.make().start(work)
        try:
            applies_if(hasattr(live, "dispatch") and not hasattr(live, "drive"), "it drives")
            yield live, work
        finally:
            self.at_once(live.close, "close()")

    @contextlib.contextmanager
    def _watched(self, power: str) -> Iterator[tuple[Server, Notes]]:
        """Yield a server and notes of what the dispatcher does, if it has this power."""
        with self._live() as live:
            applies_if(hasattr(live, power), f"it has no {power}()")
        recipe = self.make()
        elsewhere = getattr(recipe, "forks_workers", False) or hasattr(recipe, "interpreters")
        applies_if(not elsewhere, "it takes requests in other processes or interpreters, where nobody watches")
        notes = Notes()
        with self._serving(recipe=Spied(recipe, notes)) as server:
            yield server, notes

    def _adapt(self, request: Any) -> None:
        """Adapt a request and close it, all in one thread, as the serving thread does."""
        live = self.make().start(_Idle(self._handler()))
        live.adapt(request).close()
        live.close()

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

    def _survives(self, command: str, outcome: str) -> None:
        with self._serving() as server:
            for _ in range(3):
                answer = self._ask(server, command)
                expect(answer == "", f"a handler that was told to {command} answered {answer!r}")
                self._is_served(server)
            self._counts(server, **Counter(["finished", outcome] * 3))

    def _settles(self, server: Server) -> None:
        self.until(lambda: server.stats().active == 0, "after all clients have left, {seconds} s later, requests still count as active")

    def _counts(self, server: Server, **outcomes: int) -> None:
        self._settles(server)
        found = dict(server.stats().outcomes)
        expect(found == outcomes, f"the requests were counted as {found}, not {outcomes}")

    @contextlib.contextmanager
    def _stopping(self, server: Server, drain: float) -> Iterator[Future[DrainReport]]:
        """Stop the server in another thread, and yield the report to come once the server drains."""
        stopped: Future[Any] = Future()
        threading.Thread(target=lambda: stopped.set_result(server.stop(drain)), daemon=True).start()
        self.until(lambda: not server.ready, "{seconds} s after stop() the server still takes requests")
        yield stopped

    def _report(self, stopped: Future[DrainReport]) -> DrainReport:
        try:
            return stopped.result(self.patience)
        except TimeoutError:
            raise BrokenPromiseError(f"the drain had not ended after {self.patience:g} s, long after its deadline") from None


class _Idle:
    """The work of a server that has none: enough to start and close a live part."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def forget(self) -> None:
        """Do nothing: there are no listeners for a child to close."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"start() or close() used work.{name}, which is for requests")


class _Reading:
    """Work whose requests run until their client sends a byte."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler
        self.threads: list[int] = []

    def run(self, request: Any, _client_address: Any) -> None:
        self.threads.append(threading.get_ident())
        request.recv(1)

    def run_alone(self, request: Any, client_address: Any) -> str:
        self.run(request, client_address)
        return "finished"

    def release(self, request: Any) -> None:
        request.close()

    def forget(self) -> None:
        pass

    def settle(self, request: Any, outcome: str) -> None:
        pass


def check_dispatcher(make: Callable[[], Any], *, only: str | None = None) -> Report:
    """Check a dispatcher and return the report.

    make: returns a new recipe. only: the method of a single promise, such as ``test_drain_waits``.
    Raises: NotConformingError, whose message is the report, if it breaks a promise.
    """
    return check(DispatcherConformance, make, only)
