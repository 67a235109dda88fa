"""What an observer promises: see `socketkit.seams.EVENTS`."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from statistics import median
from typing import Any, ClassVar

from socketkit.seams import EVENTS, DrainReport, Refusal, Stuck
from socketkit.server import Server
from socketkit.testing.conformance.commands import Commands, client
from socketkit.testing.conformance.promises import Conformance, Report, check, expect
from socketkit.testing.leaks import Account
from socketkit.transports.tcp import TCP

QUICKLY = 0.01
"""Seconds that one call of an observer may usually take: it happens in the thread that takes or runs requests."""

_PREFIXES = tuple({f"{name.partition('_')[0]}_" for name in EVENTS})
_ADDRESSES = (("192.0.2.7", 50000), ("2001:db8::7", 50000, 0, 0), "/run/client.sock", b"\0name", "", None)


class ObserverConformance(Conformance):
    """The promises of an observer."""

    seam: ClassVar[str] = "observer"

    def test_events(self) -> None:
        """It has a method for at least one event, and none whose name only looks like one."""
        observer = self.make()
        names = [name for name in dir(observer) if name.startswith(_PREFIXES) and callable(getattr(observer, name))]
        for name in names:
            close = difflib.get_close_matches(name, EVENTS, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; the events are {', '.join(EVENTS)}"
            expect(name in EVENTS, f"{name} is no event, so nobody calls it{hint}")
        expect(names, f"it has no method for an event; the events are {', '.join(EVENTS)}")

    def test_arguments(self) -> None:
        """It takes the arguments of each of its events, whatever the client's address is."""
        for name, arguments in self._calls():
            try:
                self.at_once(partial(getattr(self.make(), name), *arguments), f"{name}()")
            except TypeError as error:
                expect(False, f"{name}{EVENTS[name].partition(':')[0]} was called and raised TypeError: {error}")
            except Exception as error:  # noqa: BLE001 - an observer may raise anything
                expect(False, f"{name}{arguments!r} raised {type(error).__name__}: {error}")

    def test_quick(self) -> None:
        """It returns quickly, because the thread in which an event happens waits for it."""
        observer, count = self.make(), 20
        for name, arguments in self._calls():
            call = getattr(observer, name)
            took = median(_timed(call, arguments) for _ in range(count))
            expect(took < QUICKLY, f"{name}() usually took {took * 1000:.0f} ms; hand long work to a thread of its own")

    def test_threads(self) -> None:
        """Many threads may call it at the same time."""
        observer = self.make()
        with ThreadPoolExecutor(8) as threads:
            calls = [threads.submit(getattr(observer, name), *arguments) for _ in range(50) for name, arguments in self._calls()]
            for each in calls:
                error = each.exception()
                expect(error is None, f"called by eight threads at once, it raised {type(error).__name__}: {error}")

    def test_served(self) -> None:
        """A server with it starts, answers and stops, and it leaves nothing behind."""
        self._serve()
        before = Account.take()
        self._serve()
        left = before.left_since()
        expect(not left, f"after the server was closed there is still: {'; '.join(left)}")

    def _serve(self) -> None:
        with Server(TCP("127.0.0.1", 0), Commands, observers=[self.make()]) as server:
            self.at_once(server.start, "the start of a server")
            for command in ("echo hello", "raise"):
                with client(server.addresses[0], self.patience) as asking:
                    asking.ask(command)

    def _calls(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Yield each event of the observer, with arguments that servers pass."""
        server = Server(TCP("127.0.0.1", 0), Commands)
        report = DrainReport(1, 2, (Stuck(_ADDRESSES[0], 3.0, "a stack"),))
        refused, failure = Refusal("max_connections is reached", "max_connections"), RuntimeError("a handler raised")
        samples: dict[str, list[tuple[Any, ...]]] = {
            "server_started": [(server,)],
            "server_stopping": [(server,)],
            "server_stopped": [(server, report), (server, None)],
            "request_accepted": [(server, (b"data", None), each) for each in _ADDRESSES],
            "handler_entered": [(server, (b"data", None), each, seconds) for each in _ADDRESSES for seconds in (0.25, None)],
            "handler_left": [(server, each, outcome, 0.25) for each in _ADDRESSES for outcome in ("finished", None)],
            "request_finished": [(server, each, 0.25) for each in _ADDRESSES],
            "request_failed": [(server, each, failure) for each in _ADDRESSES],
            "request_refused": [(server, each, refused) for each in _ADDRESSES],
            "request_ended": [(server, each, outcome, 0.25) for each in _ADDRESSES for outcome in ("finished", "died")],
            "process_ending": [(server,)],
            "accept_paused": [(server, "tcp://127.0.0.1:9999", OSError(24, "Too many open files"), 0.1)],
            "accept_resumed": [(server, "tcp://127.0.0.1:9999", 3)],
            "worker_started": [(server, 12345)],
            "worker_died": [(server, 12345, "SIGKILL, perhaps because memory ran out")],
            "worker_left": [(server, 12345)],
        }
        for name in EVENTS:
            if hasattr(self.make(), name):
                for arguments in samples[name]:
                    yield name, arguments


def _timed(call: Callable[..., object], arguments: tuple[Any, ...]) -> float:
    context = copy_context()  # servers call it in one of the request, and what it stores there must not stay in the test's
    began = time.perf_counter()
    context.run(call, *arguments)
    return time.perf_counter() - began


def check_observers(make: Callable[[], Any], *, only: str | None = None) -> Report:
    """Check an observer; `make` returns a new one. See `check_dispatcher`."""
    return check(ObserverConformance, make, only)
