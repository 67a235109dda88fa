"""What a lifecycle promises: see `socketkit.seams.Lifecycle`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from socketkit.seams import DrainReport, InWork
from socketkit.server import Server
from socketkit.testing.conformance.commands import Commands, client
from socketkit.testing.conformance.promises import Report, applies_if, check, expect
from socketkit.testing.conformance.recipes import RecipeConformance
from socketkit.testing.leaks import Account
from socketkit.transports.tcp import TCP


class LifecycleConformance(RecipeConformance):
    """The promises of a lifecycle."""

    seam: ClassVar[str] = "lifecycle"

    def test_times(self) -> None:
        """`drain` and `lame_duck`, if it has them, are seconds from 0 on; `drain` may be None."""
        recipe = self.make()
        for name, allowed in (("drain", (0, None)), ("lame_duck", (0,))):
            value = getattr(recipe, name, 0)
            fits = value in allowed or (isinstance(value, int | float) and value > 0)
            expect(fits, f"{name} is {value!r}")

    def test_runs_once(self) -> None:
        """`serve` runs the server exactly once, and returns when it has stopped."""
        serving = _Run()
        self._serve(serving)
        expect(serving.calls.count("run") == 1, f"serve() called run() {serving.calls.count('run')} times: {serving.calls}")

    def test_report(self) -> None:
        """`serve` returns the report of the drain, which comes after the run; or None, if there was no drain."""
        serving = _Run()
        report = self._serve(serving)
        if "drain" in serving.calls:
            expect(serving.calls.index("drain") > serving.calls.index("run"), f"the drain came before the run: {serving.calls}")
            expect(report is serving.report, f"serve() returned {report!r}, not the report that drain() had returned")
        else:
            expect(report is None, f"serve() returned {report!r} without a drain")

    def test_error(self) -> None:
        """An error that ends the run early is raised by `serve`."""
        error = RuntimeError("the run of a check raises this on purpose")
        try:
            self._serve(_Run(error))
        except RuntimeError as raised:
            expect(raised is error, f"serve() raised {raised!r}, not the error of the run")
        else:
            expect(False, "serve() returned although run() had raised, so nobody learns of it")

    def test_drains_after_an_error(self) -> None:
        """If it drains, it does so after a run that raises too: the drain releases everything."""
        kept, failed = _Run(), _Run(RuntimeError("the run of a check raises this on purpose"))
        self._serve(kept)
        applies_if("drain" in kept.calls, "it does not drain")
        with contextlib.suppress(RuntimeError):
            self._serve(failed)
        expect("drain" in failed.calls, "serve() did not drain after a run that raised; drain in a finally")

    def test_thread(self) -> None:
        """`serve` calls `run` and `drain` in the thread that called it."""
        serving = _Run()
        thread = self.at_once(lambda: (self.make().serve(serving), threading.get_ident())[1], "serve() of a run that ends at once")
        expect(serving.threads == {thread}, "serve() called run() or drain() in another thread than its own")

    def test_ready_first(self) -> None:
        """What it wants to be told by `on_ready`, it says before `run`."""
        serving = _Run()
        self.make().serve(serving)
        applies_if("on_ready" in serving.calls, "it calls no on_ready()")
        late = "on_ready" in serving.calls[serving.calls.index("run") :]
        expect(not late, f"serve() called on_ready() after run(), when nothing is ready any more: {serving.calls}")

    def test_leaves_nothing(self) -> None:
        """`serve` leaves signal handlers, threads, processes and descriptors as they were, in the main thread too."""
        before = Account.take()
        self.make().serve(_Run())
        left = before.left_since()
        expect(not left, f"after serve() there is still: {'; '.join(left)}")

    def test_leaves_nothing_after_an_error(self) -> None:
        """The same goes for a run that raises."""
        before = Account.take()
        with contextlib.suppress(RuntimeError):
            self.make().serve(_Run(RuntimeError("the run of a check raises this on purpose")))
        left = before.left_since()
        expect(not left, f"after serve() has raised there is still: {'; '.join(left)}")

    def test_served(self) -> None:
        """A server with it starts, answers, stops and can be started again."""
        server = Server(TCP("127.0.0.1", 0), Commands, lifecycle=self.make())
        for _ in range(2):
            self.at_once(server.start, "the start of a server")
            with client(server.addresses[0], self.patience) as asking:
                expect(asking.ask("echo hello") == "hello", "a client of a server with it was not answered")
            self.at_once(lambda: server.stop(0), "stop(0)")
        self.at_once(server.server_close, "closing the server")

    def test_two_servers(self) -> None:
        """Two servers with one recipe serve at the same time, and the end of one leaves the other alone."""
        recipe = self.make()
        one, other = (Server(TCP("127.0.0.1", 0), Commands, lifecycle=recipe) for _ in range(2))
        for server in (one, other):
            self.at_once(server.start, "the start of a second server with the same recipe")
        for server in (other, one):
            with client(server.addresses[0], self.patience) as asking:
                expect(asking.ask("echo hello") == "hello", "of two servers with one recipe, one did not answer")
            self.at_once(server.server_close, "closing one of two servers with one recipe")

    def test_stop_in_another_thread(self) -> None:
        """A server that is stopped while it serves a client stops."""
        server = Server(TCP("127.0.0.1", 0), Commands, lifecycle=self.make())
        self.at_once(server.start, "the start of a server")
        with client(server.addresses[0], self.patience) as holding:
            holding.ask("hold")
            stopper = threading.Thread(target=server.stop, args=(0,), daemon=True)
            stopper.start()
            stopper.join(self.patience)
            expect(not stopper.is_alive(), f"stop(0) beside a client had not returned after {self.patience:g} s")
        self.at_once(server.server_close, "closing the server")

    def _serve(self, serving: Any) -> Any:
        """Call `serve` in another thread, where it may set no signal handlers."""
        return self.at_once(lambda: self.make().serve(serving), "serve() of a run that ends at once")


class _Run:
    """A run that ends at once, and notes what is called. See `socketkit.seams.Serving`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.report = DrainReport(finished=7)
        self._error = error

    def run(self) -> None:
        self.calls.append("run")
        self.threads.add(threading.get_ident())
        if self._error is not None:
            raise self._error

    def drain(self, _seconds: float | None, /, *, queue: bool = True) -> DrainReport:  # noqa: ARG002 - as the seam has it
        self.calls.append("drain")
        self.threads.add(threading.get_ident())
        return self.report

    def stop(self, _drain: float | None = None, /) -> None:
        self.calls.append("stop")

    def in_work(self) -> InWork:
        self.calls.append("in_work")
        return InWork()

    def on_ready(self, _callback: Callable[[], None], _every: float | None = None, /) -> None:
        self.calls.append("on_ready")

    def hand_over(self) -> None:
        self.calls.append("hand_over")


def check_lifecycle(make: Callable[[], Any], *, only: str | None = None) -> Report:
    """Check a lifecycle. See `check_dispatcher`."""
    return check(LifecycleConformance, make, only)
