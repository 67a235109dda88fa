"""Worker interpreters: how they are started, watched and ended. Nothing can end an interpreter that runs code, so one may be given up."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from typing import TYPE_CHECKING

import attrs

from socketkit._system import interpreters, program_end
from socketkit._system.log_relay import Relay
from socketkit._system.logs import PATIENCE
from socketkit._system.threads import BackgroundThread
from socketkit.dispatchers._supervision import interpreter_worker
from socketkit.dispatchers._supervision.handle import Ending, WorkerHandle
from socketkit.dispatchers._supervision.supervisor import Supervisor
from socketkit.logs import Log
from socketkit.seams import PackedReplica, Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from socketkit.dispatchers.interpreters import Interpreters


@attrs.define(eq=False)
class InterpreterHandle(WorkerHandle):
    """A worker interpreter, and the thread that has entered it."""

    thread: InterpreterThread = attrs.field(kw_only=True)
    given_up: bool = False

    def ended(self) -> Ending | None:
        if self.thread.ending is None and self.given_up:
            return Ending("given up", late="and its requests go on, because nothing can end them")
        return self.thread.ending

    def end(self) -> None:
        """Do nothing: its main thread reads its messages, whatever its requests do."""

    def abort(self) -> None:
        """Do nothing: as above. Its stacks cannot be shown."""

    def kill(self) -> None:
        self.given_up = True

    def close(self) -> None:
        super().close()
        if self.thread.ending is not None:
            self.thread.finish()


class InterpreterThread(BackgroundThread):
    """Runs one worker in a new interpreter, from `start` until that ends. `ending` is set, and `channel` closed, when it has."""

    def __init__(self, channel: socket.socket, packed: PackedReplica, most_requests: int | None, ended: Callable[[], object]) -> None:
        """Raises: OSError, RuntimeError if no descriptor, thread or memory is available. `channel` and `packed` stay the caller's then."""
        super().__init__(self._serve, "socketkit-interpreter")
        self.ending: Ending | None = None
        self._channel, self._packed, self._most_requests, self._ended = channel, packed, most_requests, ended
        self._interpreter = interpreters.create()
        self.number = int(self._interpreter.id)
        self.name = f"socketkit-interpreter-{self.number}"
        try:
            self._relay = Relay()
        except BaseException:
            self._interpreter.close()
            raise

    def start(self) -> None:
        """As `threading.Thread.start`. Raises: RuntimeError, as the constructor does."""
        _be_ready_to_leave_some_behind()
        try:
            super().start()
        except BaseException:
            self._relay.abandon()
            self._interpreter.close()
            raise

    def _serve(self) -> None:
        ending = Ending("its interpreter could not be prepared")
        try:
            interpreters.prepare(self._interpreter, self._relay)
            ending = self._call()
        except Exception as error:  # noqa: BLE001 - the supervisor logs it
            ending = Ending(str(error))
        finally:
            with contextlib.suppress(Exception):
                self._interpreter.close()  # waits for threads that are no daemons, then calls exit functions
            self._relay.finish(PATIENCE)
            self.ending = ending
            self._channel.close()
            self._ended()

    def _call(self) -> Ending:
        """Raises: concurrent.interpreters.ExecutionFailed, if the worker could not take over what is packed."""
        packed, most_requests = self._packed, self._most_requests or 0
        arguments = (
            self._channel.fileno(),
            packed.parcel,
            packed.descriptors,
            packed.counts,
            most_requests,
        )  # such as any interpreter can take
        try:
            cause, for_good = self._interpreter.call(interpreter_worker.serve, *arguments)
        except BaseException:
            packed.close()
            raise
        return Ending(cause or "it ended by itself", clean=not cause, for_good=for_good)


@functools.cache  # once is enough
def _be_ready_to_leave_some_behind() -> None:
    program_end.leave_behind(lambda: any(isinstance(each, InterpreterThread) for each in threading.enumerate()))


class InterpreterSupervisor(Supervisor):
    """The live part of `Interpreters`."""

    log = Log("socketkit.dispatchers.interpreters")

    def __init__(self, recipe: Interpreters, work: Work) -> None:
        super().__init__(recipe, work)
        self._one_ended = threading.Event()

    def wait_for_exit(self, timeout: float | None) -> None:
        self._one_ended.wait(timeout)
        self._one_ended.clear()

    def employ(self) -> InterpreterHandle:
        """As `Supervisor.employ`. Raises also: IncompatibleError if the server cannot be copied into an interpreter."""
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            undo.callback(theirs.close)
            ours.setblocking(False)
            replica = self._work.branch()
            undo.callback(replica.close)
            packed = replica.pack(self._recipe.inner)
            undo.callback(packed.close)
            thread = InterpreterThread(theirs, packed, self._at_random(self._recipe.max_requests), self._one_ended.set)
            thread.start()
            undo.pop_all()
        return InterpreterHandle(thread.number, ours, replica, thread=thread)
