"""A worker interpreter, from the inside: its messages to and from the supervisor, and when it leaves."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from typing import TYPE_CHECKING, Any

from socketkit._system import log_relay, logs
from socketkit._system.threads import SureThread
from socketkit.dispatchers._supervision.handle import CLOSE, DUE, FORCE, LEAVE, READY, RENEW, STOP, hear, say
from socketkit.errors import SocketkitError
from socketkit.logs import Log

if TYPE_CHECKING:
    from socketkit._engine.intake import Intake
    from socketkit.seams import Serving

log = Log("socketkit.dispatchers.interpreters")


def serve(channel: int, parcel: bytes, descriptors: tuple[int, ...], counts: memoryview, most_requests: int) -> tuple[str, bool]:
    """Serve until the supervisor, or a handler, ends it. The supervisor calls this in a new interpreter.

    channel: the descriptor of the channel, which stays the supervisor's. parcel, descriptors, counts: see `socketkit.seams.PackedReplica`.
    most_requests: ask for a successor after so many requests; 0: never.
    Returns: why it failed, "" if it did not; and whether a successor would fail in the same way.
    """
    sockets = [socket.socket(fileno=each) for each in descriptors]  # first, because from here on they belong to this interpreter
    with socket.socket(fileno=os.dup(channel)) as own_channel:
        worker = InterpreterWorker(own_channel, most_requests)
        worker.serve(parcel, sockets, counts)
    for each in sockets:
        each.close()
    logs.finish()
    log_relay.end()
    return worker.failure, worker.fails_for_good


class InterpreterWorker:
    """One worker. Its interpreter's main thread reads the supervisor's messages, so that these arrive while handlers hold all others."""

    def __init__(self, channel: socket.socket, most_requests: int) -> None:
        self.failure = ""
        self.fails_for_good = False
        self._channel = channel
        self._most_requests = most_requests
        self._serving: Serving | None = None
        self._intake: Intake | None = None
        self._leaving = False
        self._closing = False  # and nobody else continues to serve the listeners
        self._due = False
        self._lock = threading.Lock()  # guards the change from booting to serving, which a message may fall into

    def serve(self, parcel: bytes, sockets: list[socket.socket], counts: memoryview) -> None:
        """Return when the worker has ended, and has closed the sockets or left them unused."""
        thread = SureThread(target=self._run, args=(parcel, sockets, counts), name="socketkit-serve", daemon=True)
        thread.start()
        while (words := hear(self._channel)) is not None:
            for word in words:
                self._obey(word)
        self._obey(FORCE)  # unless `_run` has ended, the supervisor has given this worker up
        thread.join()

    def _run(self, parcel: bytes, sockets: list[socket.socket], counts: memoryview) -> None:
        try:
            replica: Any = pickle.loads(parcel)  # noqa: S301 - the supervisor, in the same process, made it
            self._serving = replica.enter(sockets, counts, self._opened, self._settled if self._most_requests else None)
            self._serving.run()
            if not self._leaving:  # the server was stopped from within, by a handler
                self._leaving = self._closing = True
                say(self._channel, STOP)
            self._serving.drain(None, queue=self._closing)  # the supervisor limits the time
        except BaseException as error:
            log.exception("a worker failed in its interpreter")
            self.failure = f"{type(error).__name__}: {error}"
            self.fails_for_good = isinstance(error, (ImportError, SocketkitError))
        finally:
            self._channel.shutdown(socket.SHUT_RD)

    def _opened(self, intake: Intake) -> None:
        with self._lock:
            self._intake = intake
            leaving = self._leaving
        say(self._channel, READY)
        if leaving:
            intake.retire()

    def _obey(self, word: str) -> None:
        """Carry out one message of the supervisor."""
        if word in {LEAVE, CLOSE}:
            self._closing = word == CLOSE
            self._leave()
        elif word == FORCE:
            self._leaving = True
            if self._serving is not None:
                self._serving.stop(0)
        elif word == RENEW and self._serving is not None:
            self._serving.renew()

    def _leave(self) -> None:
        with self._lock:
            self._leaving = True
            intake = self._intake
        if intake is not None:
            intake.retire()

    def _settled(self, count: int) -> None:
        """After each request: ask once for a successor, if this worker has had its share of requests."""
        if not self._due and count >= self._most_requests:
            self._due = True
            say(self._channel, DUE)
