"""Worker processes: how prefork starts, watches and ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

import attrs

from socketkit._system.children import fork, how_it_ended, keep_private, pidfd, reap, send_signal, wait_any
from socketkit.dispatchers._supervision.handle import PING, Ending, WorkerHandle, WorkerState, say
from socketkit.dispatchers._supervision.process_worker import ProcessWorker
from socketkit.dispatchers._supervision.supervisor import Supervisor
from socketkit.logs import Log
from socketkit.seams import Replica, Work

if TYPE_CHECKING:
    from socketkit.dispatchers.prefork import Prefork

LOOKS = 4
"""Number of times within `hang_timeout` that each worker is asked to respond."""


@attrs.define(eq=False)
class ProcessHandle(WorkerHandle):
    """A worker process."""

    killed: bool = False

    def ended(self) -> Ending | None:
        code = reap(self.number)
        if code is None:
            return None
        if self.killed and code == -signal.SIGKILL:
            return Ending(signal.SIGKILL.name, late="so it was killed")
        return Ending(how_it_ended(code), clean=not code)

    def end(self) -> None:
        send_signal(self.number, signal.SIGTERM)

    def abort(self) -> None:
        """Send SIGABRT, so that it dumps the stacks of its threads."""
        send_signal(self.number, signal.SIGABRT)

    def kill(self) -> None:
        self.killed = True
        send_signal(self.number, signal.SIGKILL)

    def close(self) -> None:
        super().close()
        if self.exit_descriptor is not None:
            os.close(self.exit_descriptor)


class ProcessSupervisor(Supervisor):
    """The live part of `Prefork`."""

    log = Log("socketkit.dispatchers.prefork")

    def __init__(self, recipe: Prefork, work: Work) -> None:
        super().__init__(recipe, work)
        self._prefork = recipe
        self._looked = 0.0  # monotonic time at which the workers were last asked to respond

    def wait_for_exit(self, timeout: float | None) -> None:
        wait_any(self._workers, timeout)

    def employ(self) -> ProcessHandle:
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                ours.setblocking(False)
                theirs.setblocking(False)
                keep_private(ours)
                replica = self._work.branch()
                undo.callback(replica.close)
                worker = ProcessWorker(self._prefork, theirs, self._at_random(self._recipe.max_requests))
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until the child has its own handlers
                try:
                    pid = fork(lambda: self._become(worker, replica))
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            undo.pop_all()
        return ProcessHandle(pid, ours, replica, pidfd(pid))

    def _become(self, worker: ProcessWorker, replica: Replica) -> int:
        """In the child: return its exit code."""
        for other in self._workers.values():
            other.close()
        return worker.serve(replica)

    # --- hanging workers -------------------------------------------------------------------------------------------------

    def watch_over(self) -> None:
        if self._prefork.hang_timeout is not None:
            self._look_after(self._prefork.hang_timeout)

    def _look_after(self, limit: float) -> None:
        """Ask every worker to respond; end those that for `limit` seconds have neither responded nor finished a request."""
        now = time.monotonic()
        asleep, self._looked = now - self._looked > limit / 2, now  # this process was suspended, or the whole system was
        for worker in self._workers.values():
            if worker.state not in {WorkerState.SERVING, WorkerState.DUE} or worker.verdict:
                continue
            served = worker.replica.served()
            if asleep or served != worker.served:
                worker.served, worker.heard = served, now
            if now - worker.heard > limit:
                self.abort(worker, f"it has not answered for {now - worker.heard:.1f} s")
            else:
                say(worker.channel, PING)
        self._intake.call_later(limit / LOOKS, partial(self._look_after, limit))
