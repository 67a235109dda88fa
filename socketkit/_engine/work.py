"""The work that a dispatcher receives: requests to run, and worker processes to start."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from functools import partial

from socketkit._system.forking import forks
from socketkit._system.logs import Log
from socketkit._system.sockets import until_ready
from socketkit.handlers.base import unwrapped
from socketkit.seams.events import Refusal

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

    from socketkit._engine.engine import Engine
    from socketkit._engine.intake import Intake
    from socketkit._engine.run import Run
    from socketkit.seams import Address, Dispatch, Dispatcher, Drive, EventLoop, PackedReplica, Parking, Request, Stats

log = Log("socketkit.work")


class Work:
    """The work of a live dispatcher: see `socketkit.seams.Work`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._server = engine.server
        self._ledger = engine.ledger

    def run(self, request: Request, client_address: Address) -> None:
        ledger, server = self._ledger, self._server
        entry = ledger.find(request)
        if entry is not None:
            entry.thread = threading.get_ident()
            if entry.layers:
                if not self._engine.pass_layers(entry):
                    return
                request, client_address = entry.request, entry.client_address
        try:
            server.process_request_thread(request, client_address)
        except BaseException as error:
            ledger.fail(request if entry is None else entry.request, error)
            if not self._engine.confines(error):
                raise
        finally:
            ledger.settle(request if entry is None else entry.request)  # its handler may have had it replaced

    def run_alone(self, request: Request, client_address: Address) -> str:
        forks.note_request()
        self._ledger.become_copy()
        self._engine.forget_parent(request)
        entry = self._ledger.find(request)
        try:
            self.run(request, client_address)
        finally:
            self._engine.tell("process_ending")
        return "finished" if entry is None else entry.outcome

    @property
    def handler(self) -> Any:
        return unwrapped(self._server.RequestHandlerClass)

    def run_async(self, request: Request, client_address: Address, loop: EventLoop | None = None) -> Coroutine[Any, Any, None]:
        from socketkit._engine import coroutines  # noqa: PLC0415 - for asynchronous handlers only

        return coroutines.serve(self._engine, request, client_address, loop or coroutines.ASYNCIO)

    def hand_over(self, dispatch: Callable[[Request, Address], None], request: Request, client_address: Address) -> None:
        """Give the request to a dispatcher that will settle it. If the dispatcher has no thread or process for it, refuse the request."""
        entry = self._ledger.find(request)
        if entry is not None:
            entry.elsewhere = True
        try:
            dispatch(request, client_address)
        except (OSError, RuntimeError) as error:
            log.warning("refused %s: no thread or process can run its request: %s", client_address, error)
            self._ledger.refuse(request, Refusal(str(error), "resources"))
            self._server.shutdown_request(request)
            self._ledger.settle(request)

    def release(self, request: Request) -> None:
        self._server.close_request(request)

    def forget(self) -> None:
        self._engine.forget_parent(None)

    def settle(self, request: Request, outcome: str) -> None:
        self._ledger.settle(request, outcome)

    def branch(self) -> Replica:
        return Replica(self._engine)


class Replica:
    """An additional worker that serves: see `socketkit.seams.Replica`. `enter` is for a forked child, all else for the parent."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tally = engine.ledger.replicas.open()

    def enter(self, dispatcher: Dispatcher | None, opened: Callable[[Intake], None], settled: Callable[[int], None] | None = None) -> Run:
        return self._engine.become_replica(dispatcher, self._tally, opened, settled)

    def pack(self, dispatcher: Dispatcher | None) -> PackedReplica:
        return self._engine.pack(self._tally, dispatcher)

    def begun(self, worker: object) -> None:
        """Tell the observers that the worker has started; the first worker makes the server ready."""
        if self._engine.run is not None:
            self._engine.run.be_ready()
        self._engine.tell("worker_started", worker)

    def stats(self) -> Stats:
        return self._tally.stats()

    def served(self) -> int:
        return self._tally.served

    def close(self, worker: object = None, reason: str = "") -> None:
        self._engine.ledger.replicas.close(self._tally)
        if reason:
            self._engine.tell("worker_died", worker, reason)
        elif worker is not None:
            self._engine.tell("worker_left", worker)


class StartedDispatcher:
    """A live dispatcher and its optional powers, looked up once: `socketkit.seams.powers` describes each of them.

    process: called by `process_request` with each request. A live part with `dispatch` is handed the request and settles it; a
    driver's threads run requests where they take them.
    """

    def __init__(self, recipe: Dispatcher, work: Work) -> None:
        part: Any = recipe.start(work)
        self.part: Dispatch | Drive = part
        self.process: Callable[[Request, Address], object] = (
            partial(work.hand_over, part.dispatch) if hasattr(part, "dispatch") else work.run
        )
        self.wait: Callable[[float | None], bool] = part.wait
        self.close: Callable[[], None] = part.close
        self.drive = getattr(part, "drive", None)
        self.parking: Parking | None = getattr(part, "parking", None)
        self.runs_in_place: bool = getattr(part, "runs_in_place", False)
        self.inline: bool = getattr(part, "inline", False)
        self.adapt = getattr(part, "adapt", None)
        self.until_ready: Callable[..., bool] = getattr(part, "until_ready", until_ready)
        self.narrow = getattr(part, "narrow", None)
        self.cut = getattr(part, "cut", None)
        self.force = getattr(part, "force", None)
        self.linger: Callable[[], Callable[[], None]] | None = getattr(part, "linger", None)
        self.unshare = getattr(part, "unshare", None)
        self.attach = getattr(part, "attach", None)
        self.renew_workers = getattr(part, "renew_workers", None)
        self.forks: bool = self.cut is not None or getattr(recipe, "forks_workers", False)  # processes, in the serving thread
