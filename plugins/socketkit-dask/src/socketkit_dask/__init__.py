"""A dispatcher for socketkit: replies to messages are computed on a Dask cluster.

Connections and framing stay in this process. Only a message and its client's address travel, and only bytes come back.
"""

from __future__ import annotations

import pickle
import re
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from socketkit.errors import IncompatibleError
from socketkit.hookspecs import hookimpl
from socketkit.seams import Parking, Seconds, Work, at_least, seconds, seconds_or_none, some_seconds_or_none
from socketkit.seams.messages import replies_to_messages
from socketkit_dask.errors import ClusterError, WorkersLostError

if TYPE_CHECKING:
    from socketkit.seams import Checks, Dispatcher
    from socketkit_dask._driver import DaskDriver

__all__ = ("ClusterError", "Dask", "WorkersLostError", "socketkit_dispatchers")

_ADDRESS = re.compile(r"(?:[a-z][a-z0-9+]*://)?\S+:[0-9]+")


@attrs.frozen
class Dask:
    """Replies to messages are computed on a Dask cluster; connections stay in this process."""

    scheduler: str | None = attrs.field(default=None)
    """Address of the cluster's scheduler, such as ``tcp://10.0.0.5:8786``. None: a cluster of processes on this machine, which the
    server starts and closes."""
    workers: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(at_least(1)))
    """Processes of the local cluster. None: as many as Dask finds processors."""
    threads: int = attrs.field(default=1, kw_only=True, validator=at_least(1))
    """Messages that each process of the local cluster works on at once."""
    backlog: float = attrs.field(default=1.0, kw_only=True)
    """Most tasks that may wait for each worker thread of the cluster, whoever submitted them. Beyond it, nothing more is accepted."""
    patience: Seconds | None = attrs.field(default=30.0, kw_only=True, validator=seconds_or_none)
    """How long accepted requests wait while the cluster has no worker, before they fail; None: forever."""
    retries: int = attrs.field(default=1, kw_only=True, validator=at_least(0))
    """How often a message is computed again after the worker that computed it has died."""
    half_close: bool = attrs.field(default=False, kw_only=True)
    """Whether a client that shuts down only its sending side still gets replies. Otherwise the end of its stream cancels its message:
    TCP does not say whether a client has closed one side or both."""
    timeout: Seconds = attrs.field(default=30.0, kw_only=True, validator=[seconds, some_seconds_or_none])
    """How long the start may take: to find the scheduler, or to start the local cluster."""
    security: Any = attrs.field(default=None, kw_only=True, repr=False)
    """A `distributed.Security` with the certificates of the cluster, in Python only. None: what Dask's configuration says."""
    defer: Seconds = attrs.field(default=0.01, kw_only=True, validator=seconds)
    """How long to wait for a new connection's first byte before its handler starts anyway."""
    idle: Seconds | None = attrs.field(default=75.0, kw_only=True, validator=seconds_or_none)
    """How long a connection may stay idle between messages before it is closed; None: forever."""
    max_inline: int = attrs.field(default=10, kw_only=True, validator=at_least(1))
    """Most messages that one connection may send in a row while others wait."""

    requires: ClassVar[frozenset[str]] = frozenset({"threads", "sockets"})

    @scheduler.validator
    def _valid_scheduler(self, _field: object, value: object) -> None:
        if value is not None and not (isinstance(value, str) and _ADDRESS.fullmatch(value)):
            raise ValueError(f"scheduler must be an address such as tcp://127.0.0.1:8786, or none for a local cluster, not {value!r}")

    @backlog.validator
    def _valid_backlog(self, _field: object, value: object) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise ValueError(f"backlog must be 0 or more tasks for each worker thread, not {value!r}")

    @security.validator
    def _valid_security(self, _field: object, value: object) -> None:
        if value is not None and not hasattr(value, "get_connection_args"):
            raise ValueError("security must be a distributed.Security, in Python; in text, leave it out and use Dask's configuration")

    def __attrs_post_init__(self) -> None:
        if self.scheduler is not None and (self.workers is not None or self.threads != 1):
            raise ValueError("workers and threads are for a local cluster; leave them out, or leave scheduler out")

    @property
    def parking(self) -> Parking:
        """How connections wait without a thread."""
        return Parking(self.defer, self.idle, self.max_inline)

    def check(self, handler: Any) -> None:
        """Check that workers can compute this handler's replies. Raises: IncompatibleError."""
        name = getattr(handler, "__qualname__", repr(handler))
        if not replies_to_messages(handler):
            reason = f"sends only messages to its workers, and {name} does not answer messages"
            raise IncompatibleError("Dask", reason, "derive it from MessageHandler, or choose another dispatcher")
        try:
            pickle.dumps(handler)
        except Exception as error:
            raise IncompatibleError("Dask", f"cannot send {name} to its workers ({error})", "define it at the top of a module") from error

    def start(self, work: Work) -> DaskDriver:
        """Return the live part, connected to the cluster.

        Raises: ClusterError if the cluster is not there after `timeout` seconds, IncompatibleError.
        """
        from socketkit_dask._driver import DaskDriver  # noqa: PLC0415 - it imports `distributed`, which takes most of a second

        self.check(work.handler)
        return DaskDriver(self)


@hookimpl
def socketkit_dispatchers() -> dict[str, type[Dask]]:
    """Return the dispatcher of this distribution, by name."""
    return {"dask": Dask}


if TYPE_CHECKING:
    _recipe: Dispatcher = Dask()
    _checks: Checks = Dask()
