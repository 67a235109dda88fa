"""An alarm that one thread waits for while another keeps setting and postponing it, at almost no cost to either."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from typing import Any

from socketkit._system.wakeup import Wakeup


class Alarm(Wakeup):
    """A wake-up that also fires by itself a given time after it was last set. Its creator owns and closes it."""

    def __init__(self) -> None:
        super().__init__()
        self._moment = 0.0  # when to fire, which the waiting thread checks again at that time; written only by the thread that sets it
        self._rung = 0.0  # the last time that fired; written only by the waiting thread
        self._asleep = False

    def set(self, seconds: float) -> None:
        """Make `watch` return in `seconds`; this replaces the earlier setting. Call it from one thread at a time."""
        self._moment = time.monotonic() + seconds
        if self._asleep:
            self.wake()

    def watch(self, timeout: float | None = None) -> None:
        """Block until the alarm fires, another thread calls `wake`, or `timeout` seconds have passed. It may also return spuriously."""
        self._asleep = True  # set before reading the time: `set` works in the opposite order
        moment = self._moment
        if moment == self._rung:
            self.wait(timeout)
        self._asleep = False
        if moment != self._rung:
            left = moment - time.monotonic()
            if left > 0:
                self.wait(left if timeout is None else min(left, timeout))
            if time.monotonic() >= moment:
                self._rung = moment


class TimerAlarm(Alarm):
    """An alarm on a kernel timer, so that postponing it wakes no thread. Source: timerfd_create(2)."""

    def __init__(self) -> None:
        from ctypes import PyDLL, c_int, c_long, c_void_p, get_errno  # noqa: PLC0415 - only servers that run one need it

        libc: Any = PyDLL(None, use_errno=True)  # keeps the GIL: releasing it costs more than the call
        self._fileno = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fileno == -1:
            raise OSError(get_errno(), os.strerror(get_errno()))
        super().__init__()
        self._spec = (c_long * 4)()  # struct itimerspec: the interval (zero) and the time, each in seconds and nanoseconds
        self._settime = libc.timerfd_settime
        self._settime.argtypes = [c_int, c_int, c_void_p, c_void_p]
        self._poll = select.poll()
        for fileno in (self.fileno(), self._fileno):
            self._poll.register(fileno, select.POLLIN)

    def set(self, seconds: float) -> None:
        self._spec[2], self._spec[3] = divmod(max(int(seconds * 1e9), 1), 1_000_000_000)  # 0 would disarm it
        self._settime(self._fileno, 0, self._spec, None)

    def watch(self, timeout: float | None = None) -> None:
        self._poll.poll(None if timeout is None else timeout * 1000)
        self.clear()
        with contextlib.suppress(BlockingIOError):  # it has not expired, or was set again since
            os.read(self._fileno, 8)

    def close(self) -> None:
        super().close()
        fileno, self._fileno = self._fileno, -1
        if fileno != -1:
            os.close(fileno)


def best_alarm() -> Alarm:
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):  # no ctypes in this Python, or no timerfd in the C library
            return TimerAlarm()
    return Alarm()
