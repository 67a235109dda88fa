"""An alarm that one thread waits for and another one sets and postpones, many times, at next to no cost for either."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from typing import Any

from socketkit._system.wakeup import Wakeup


class Alarm(Wakeup):
    """A wake-up that also comes by itself, some seconds after it was last set. Owner: whoever made it; close it there.

    This one keeps the moment, and lets whoever waits look again when it has passed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._moment = 0.0  # written by those who set it alone
        self._rung = 0.0  # the last moment that counted; written by the one who waits alone
        self._asleep = False

    def set(self, seconds: float) -> None:
        """Let `watch` return in so many seconds; what was set before no longer counts. Call it from one thread at a time."""
        self._moment = time.monotonic() + seconds
        if self._asleep:
            self.wake()

    def watch(self) -> None:
        """Block until the alarm, or until somebody calls `wake`; it may also return for neither."""
        self._asleep = True  # before the look at the moment: `set` does it the other way round
        moment = self._moment
        if moment == self._rung:
            self.wait()
        self._asleep = False
        if moment != self._rung:
            left = moment - time.monotonic()
            if left > 0:
                self.wait(left)
            if time.monotonic() >= moment:
                self._rung = moment


class TimerAlarm(Alarm):
    """The same with the kernel's timer, so that nobody wakes up while it is postponed. Source: timerfd_create(2)."""

    def __init__(self) -> None:
        from ctypes import PyDLL, c_int, c_long, c_void_p, get_errno  # noqa: PLC0415 - for whoever runs one

        libc: Any = PyDLL(None, use_errno=True)  # keeps the interpreter's lock: to let go of it costs more than the call
        self._fileno = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fileno == -1:
            raise OSError(get_errno(), os.strerror(get_errno()))
        super().__init__()
        self._spec = (c_long * 4)()  # struct itimerspec: the interval, none, and the time, each in seconds and nanoseconds
        self._settime = libc.timerfd_settime
        self._settime.argtypes = [c_int, c_int, c_void_p, c_void_p]
        self._poll = select.poll()
        for fileno in (self.fileno(), self._fileno):
            self._poll.register(fileno, select.POLLIN)

    def set(self, seconds: float) -> None:
        """As `Alarm.set`."""
        self._spec[2], self._spec[3] = divmod(max(int(seconds * 1e9), 1), 1_000_000_000)  # 0 would switch it off
        self._settime(self._fileno, 0, self._spec, None)

    def watch(self) -> None:
        """As `Alarm.watch`."""
        self._poll.poll()
        self.clear()
        with contextlib.suppress(BlockingIOError):  # it did not go off, or was set again since
            os.read(self._fileno, 8)

    def close(self) -> None:
        """As `Wakeup.close`. Legal twice."""
        super().close()
        fileno, self._fileno = self._fileno, -1
        if fileno != -1:
            os.close(fileno)


def best_alarm() -> Alarm:
    """Return the platform's best."""
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):  # a Python without ctypes, a C library without timers
            return TimerAlarm()
    return Alarm()
