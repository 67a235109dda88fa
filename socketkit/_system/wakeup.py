"""A descriptor that any thread and any signal handler can make readable."""

from __future__ import annotations

import _socket
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

from socketkit._system.sockets import is_readable

_make_pair: Callable[[], tuple[socket.socket, socket.socket]] = getattr(_socket, "socketpair", socket.socketpair)
"""Not `socket.socketpair`, if possible: that makes sockets of the class `socket.socket`, which a program's tests may have replaced."""


class Wakeup:
    """A descriptor that any thread and any signal handler can make readable. Owner: its creator, which closes it."""

    def __init__(self) -> None:
        self._reader, self._writer = _make_pair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to watch for reading."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Make the descriptor readable. Does nothing if its buffer is full, so already readable, or if it is closed."""
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def clear(self) -> None:
        """Make the descriptor unreadable again, by reading all its bytes."""
        with contextlib.suppress(OSError):
            while self._reader.recv(4096):
                pass

    @contextlib.contextmanager
    def woken_by_signals(self) -> Iterator[None]:
        """Make every signal wake this inside the block; does nothing outside the main thread.

        Python runs a signal's handler between two instructions. A signal that arrives just before a system call would otherwise wait
        for that call to return, which may be never. Source: signal.set_wakeup_fd.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)

    def wait(self, timeout: float | None = None) -> None:
        """Block the calling thread until `wake` is called, for `timeout` seconds at most (None: no limit); then clear."""
        if is_readable(self._reader, timeout):
            self.clear()

    def close(self) -> None:
        """Close both ends."""
        self._reader.close()
        self._writer.close()
