"""The states of a server."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """State of a server. FAILED can follow any other state. A stopped or failed server may be started again."""

    NEW = "new"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"
