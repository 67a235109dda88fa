"""How a server gets into other interpreters of its process, which share no objects with it, only memory and descriptors."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs

if TYPE_CHECKING:
    from socketkit.seams.lifecycles import Serving


@attrs.frozen(eq=False)
class PackedReplica:
    """A replica on its way into another interpreter, in pieces that `concurrent.interpreters` can pass to it."""

    parcel: bytes
    """A pickled `UnpackedReplica`. To unpickle it imports the server's handler and parts."""
    descriptors: tuple[int, ...]
    """A duplicate of the descriptor of each listener. Owner: the caller of `Replica.pack`, until the other interpreter takes them over."""
    counts: memoryview
    """The memory of the replica's counts, which both sides use."""

    def close(self) -> None:
        """Close the descriptors, if no interpreter has taken them over. Call it once."""
        for each in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(each)


class UnpackedReplica(Protocol):
    """A replica that has arrived in another interpreter."""

    def enter(
        self,
        sockets: Sequence[socket.socket],
        counts: memoryview,
        opened: Callable[[Any], None],
        settled: Callable[[int], None] | None = None,
        /,
    ) -> Serving:
        """Return a run of a copy of the server, once. The caller then calls `run` and `drain` on it, as a lifecycle does.

        sockets: made from the packed descriptors. The copy's listeners own them from now on. counts: as packed.
        opened, settled: as for `Replica.enter`.
        Raises: whatever starting a layer or the dispatcher raises.
        """
