"""The errors of this dispatcher."""

from __future__ import annotations

import attrs

from socketkit.errors import SocketkitError


class ClusterError(SocketkitError, RuntimeError):
    """The cluster cannot be used: it is not there at the start, or it did not compute a reply."""


@attrs.define(slots=False)  # tblib, which Dask may install, does not pickle slots
class WorkersLostError(ClusterError):
    """Every worker that computed this message died meanwhile. Only this request fails."""

    attempts: int
    """How many workers have died."""

    def __str__(self) -> str:
        died = "the worker that computed this message died" if self.attempts == 1 else f"{self.attempts} workers that computed it died"
        return f"{died}; look for a crash or a lack of memory in the log of the workers, or allow more retries"
