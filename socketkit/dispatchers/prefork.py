"""Worker processes that share the listeners, each with its own dispatcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from socketkit.dispatchers._supervised import Supervised
from socketkit.seams import Seconds, Work
from socketkit.seams.validators import at_least, some_seconds_or_none

if TYPE_CHECKING:
    from socketkit.dispatchers._supervision.processes import ProcessSupervisor


@attrs.frozen
class Prefork(Supervised):
    """A fixed number of worker processes, each serving with an inner dispatcher. A worker that dies is replaced."""

    max_rss: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(at_least(1)))
    """Replace a worker that uses more than this many bytes of memory after a request; None: no limit."""
    hang_timeout: Seconds | None = attrs.field(default=None, kw_only=True, validator=some_seconds_or_none)
    """Replace a worker that for this long has neither looked for a request nor finished one; None: never."""

    forks_workers: ClassVar[bool] = True

    def __attrs_post_init__(self) -> None:
        if getattr(self.inner, "forks_workers", False):
            raise ValueError("inner must be a dispatcher that does not fork workers itself; increase the workers of prefork instead")

    @property
    def requires(self) -> frozenset[str]:
        """What the platform must provide: fork, and whatever the inner dispatcher needs."""
        return frozenset({"fork", *getattr(self.inner, "requires", {"threads"})})

    @property
    def processes(self) -> int:
        """Number of processes that serve together. Each gets an equal share of the server's limits."""
        return self.count

    def start(self, work: Work) -> ProcessSupervisor:
        """Return the live part."""
        from socketkit.dispatchers._supervision.processes import ProcessSupervisor  # noqa: PLC0415 - only servers that fork need its imports

        return ProcessSupervisor(self, work)
