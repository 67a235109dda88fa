"""Status messages to a service manager, by the protocol of sd_notify(3), which systemd and others understand.

Nothing here raises for lack of a working manager: without one, or with a broken one, the message is lost.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

PATIENCE = 1.0
"""Seconds to wait for a manager whose queue is full."""


def send(*lines: str, patience: float = PATIENCE) -> bool:
    """Send one message, such as ``send("READY=1", "STATUS=serving")``; return whether it was delivered.

    It goes to the socket that ``NOTIFY_SOCKET`` names at the time of the call, a path or an abstract name. Safe in a signal handler.
    """
    place = os.environ.get("NOTIFY_SOCKET", "")
    if place[:1] not in {"/", "@"} or not hasattr(socket, "AF_UNIX"):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(patience)
            manager.connect("\0" + place[1:] if place.startswith("@") else place)
            manager.send("\n".join(lines).encode())
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False
    return True


def ready() -> None:
    """Report that this process serves, or serves again after `reloading`."""
    send("READY=1")


def reloading() -> None:
    """Report that the configuration is being reloaded, or a restart is under way; `ready` ends this state."""
    send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """Report that this process is about to end."""
    send("STOPPING=1")


def ping() -> None:
    """Report to the watchdog that this process is alive. Never waits, because another ping follows soon."""
    send("WATCHDOG=1", patience=0)


def watchdog(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the most seconds allowed between two pings; None without a watchdog. Source: sd_watchdog_enabled(3)."""
    period, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not period.isdecimal() or int(period) == 0 or pid not in {"", str(os.getpid())}:
        return None
    return int(period) / 1_000_000
