"""The process-wide override of the strategies of classic server classes, as chosen by `socketkit run`."""

from __future__ import annotations

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from socketkit.seams import Dispatcher, Lifecycle


class Override:
    """The override in effect. None: each server keeps the strategy of its class, and the classic lifecycle."""

    dispatcher: Dispatcher | None = None
    lifecycle: Lifecycle | None = None
    nodelay: bool = False
    """Whether stream servers disable Nagle's algorithm."""

    @classmethod
    def is_set(cls) -> bool:
        """Return whether a dispatcher or a lifecycle takes the place of the classes' own."""
        return cls.dispatcher is not None or cls.lifecycle is not None
