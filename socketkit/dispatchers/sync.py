"""Handlers run in the serving thread, one after the other."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any, ClassVar

import attrs

from socketkit.seams import Address, Request, Work


@attrs.frozen
class Sync:
    """One request at a time, in the serving thread. Fastest for quick handlers, but nothing else is served while one runs."""

    requires: ClassVar[frozenset[str]] = frozenset()

    def max_handlers(self, handler: Any) -> int:  # noqa: ARG002 - the same for every handler
        """Return the most handlers at once: one."""
        return 1

    def start(self, work: Work) -> _Here:
        """Return the live part."""
        return _Here(work)


@attrs.define(eq=False)
class _Here:
    work: Work
    inline: ClassVar[bool] = True

    def dispatch(self, request: Request, client_address: Address) -> None:
        copy_context().run(self.work.run, request, client_address)  # so that no request sees another request's context variables

    def wait(self, timeout: float | None) -> bool:  # noqa: ARG002 - no request is left running
        return True

    def close(self) -> None:
        pass
