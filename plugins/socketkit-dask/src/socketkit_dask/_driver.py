"""The live part: it takes requests while the cluster has room, and has their replies computed there."""

from __future__ import annotations

import errno
import select
from functools import partial
from typing import TYPE_CHECKING

from socketkit.seams import Wakeup
from socketkit.seams.messages import answered_by
from socketkit_dask._cluster import Cluster
from socketkit_dask._threads import UnitThreads

if TYPE_CHECKING:
    from socketkit.seams import Address, Drive, Forces, Intake, OpenIntake, Parking, Parks, RepliesToMessages, Request, RunsInPlace, Unit
    from socketkit.seams.messages import Answer
    from socketkit_dask import Dask

GONE = getattr(select, "POLLRDHUP", 0)
"""What poll(2) reports once a peer sends no more. Linux only; other systems report a connection that is closed on both sides."""


class DaskDriver:
    """The serving thread takes units. Each runs in a thread here, which waits for its replies."""

    def __init__(self, recipe: Dask) -> None:
        self.runs_in_place = True
        self.parking: Parking | None = recipe.parking
        self._leaves = 0 if recipe.half_close else GONE
        self._is_paused = False  # for want of room
        self._is_held = False  # the intake, inside `take`, for the same reason
        self._is_closed = False
        self._alarm = Wakeup()
        self._threads = UnitThreads(self._freed)
        self._cluster = Cluster(recipe, self._looked)
        try:
            self._cluster.start()
        except BaseException:
            self._alarm.close()
            raise

    # --- taking ------------------------------------------------------------------------------------------------------

    def drive(self, open_intake: OpenIntake) -> None:
        """Take units while there is room for them on the cluster."""
        alarm = self._alarm  # woken by a stop, and when there is room after a pause, or none any more
        with alarm.woken_by_signals(), open_intake() as intake:
            intake.on_stop(alarm.wake)
            intake.watch(alarm.fileno(), partial(self._look_again, intake))
            while not intake.stopped:
                self._is_paused = True  # set before the check: what makes room reads it afterwards
                if self._is_full():
                    alarm.wait(intake.housekeep())
                    continue
                self._resume(intake)
                unit = intake.take(intake.housekeep())
                if unit is not None:
                    self._threads.give(partial(self._run, unit))

    def _look_again(self, intake: Intake) -> None:
        """While `take` waits, others may fill the cluster: accept nothing until there is room. Called in the serving thread."""
        self._alarm.clear()
        self._is_paused = True  # as above
        if self._is_full():
            self._is_held = True
            intake.hold()
        else:
            self._resume(intake)

    def _resume(self, intake: Intake) -> None:
        self._is_paused = False
        if self._is_held:
            self._is_held = False
            intake.release()

    def _is_full(self) -> bool:
        return self._threads.busy >= self._cluster.room()

    def _looked(self) -> None:
        """Act on the load of the cluster. Called in the cluster's thread."""
        if self._is_paused != self._is_full():
            self._alarm.wake()

    def _freed(self) -> None:
        if self._is_paused:
            self._alarm.wake()
        if self._is_closed and self._threads.is_idle:
            self._release()

    # --- replies -----------------------------------------------------------------------------------------------------

    def _run(self, unit: Unit) -> None:
        with answered_by(self._answer):
            unit()

    def _answer(self, handler: type[RepliesToMessages], message: bytes, client_address: Address, request: Request) -> bytes | None:
        coming = self._cluster.compute(handler, message, client_address)
        heard = Wakeup()
        coming.add_done_callback(lambda _coming: heard.wake())
        try:
            self._await(heard, request)
        finally:
            coming.cancel()  # does nothing if the reply is there
            heard.wait()  # for the callback, in any case: nobody may write to a descriptor that is about to be closed
            heard.close()
        reply, error = coming.result()
        if error is not None:
            raise error
        return reply

    def _await(self, heard: Wakeup, request: Request) -> None:
        """Wait for the reply. Raises: ConnectionAbortedError if the client leaves first, or a deadline shuts down the connection."""
        waiting = select.poll()
        waiting.register(heard, select.POLLIN)
        if not isinstance(request, tuple):
            waiting.register(request, self._leaves)
        ready = [descriptor for descriptor, _events in waiting.poll()]
        if heard.fileno() not in ready:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the connection ended while a reply was computed")

    # --- the end -----------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> bool:
        """Wait until no request runs, apart from one in the calling thread."""
        return self._threads.wait(timeout)

    def force(self) -> None:
        """Take all messages from the cluster; their requests fail."""
        self._cluster.fail_all("the server stopped before the reply was computed")

    def close(self) -> None:
        """Disconnect, and end a local cluster: now, or once the requests that still run have ended."""
        self._is_closed = True
        if self._threads.is_idle:
            self._release()

    def _release(self) -> None:
        self._threads.close()
        self._cluster.close()
        self._alarm.close()


if TYPE_CHECKING:

    def _proof(driver: DaskDriver) -> tuple[Drive, Forces, Parks, RunsInPlace, Answer]:
        return driver, driver, driver, driver, driver._answer  # noqa: SLF001 - inside its module
