"""The process-wide override of the strategies of classic server classes, as chosen by `socketkit run`."""

from __future__ import annotations

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from socketkit.seams import Dispatcher, Lifecycle
    from socketkit.seams.limits import Limits


class Override:
    """The override in effect. None: each server keeps the strategy of its class, and the classic lifecycle."""

    dispatcher: Dispatcher | None = None
    lifecycle: Lifecycle | None = None
    limits: Limits | None = None
    stats: bool = False
    """Whether each server says at the end of the program how its requests ended."""
    is_set: bool = False
    """Whether anything was chosen for which requests must be in the ledger, and so run by a dispatcher. It is read for each request."""
    nodelay: bool = False
    """Whether stream servers disable Nagle's algorithm."""

    @classmethod
    def choose(
        cls, dispatcher: Dispatcher | None = None, lifecycle: Lifecycle | None = None, limits: Limits | None = None, *, stats: bool = False
    ) -> None:
        """Choose all of these; without arguments, none."""
        cls.dispatcher, cls.lifecycle, cls.limits, cls.stats = dispatcher, lifecycle, limits, stats
        cls.is_set = stats or any(each is not None for each in (dispatcher, lifecycle, limits))
