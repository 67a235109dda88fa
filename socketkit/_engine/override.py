"""The process-wide override of the strategies of classic server classes, as chosen by `socketkit run`.

Programs may use any attribute name on a classic server, so the library's own state is kept in the server's `__dict__` under names
mangled for `BaseServer`.
"""

# ruff: noqa: SLF001 - this is the private half of classic servers

from __future__ import annotations

from typing import Any

from socketkit._engine.ledger import books
from socketkit._engine.work import StartedDispatcher, Work
from socketkit.seams import Address, Dispatcher, Lifecycle, Request

_LIVE, _RUN, _UNDRAINED = "_BaseServer__live", "_BaseServer__run", "_BaseServer__undrained"


class Override:
    """The override in effect. None: each server keeps the strategy of its class, and the classic lifecycle."""

    dispatcher: Dispatcher | None = None
    lifecycle: Lifecycle | None = None
    nodelay: bool = False
    """Whether stream servers disable Nagle's algorithm."""


def live_part(server: Any) -> Any:
    """Return the live part of the dispatcher that overrides the server's own, started on first use; None without an override."""
    if Override.dispatcher is None and Override.lifecycle is None:
        return None
    attributes = vars(server)
    if attributes.get(_LIVE) is None:
        put_under(server, Override.dispatcher or server._own_dispatcher())
    return attributes[_LIVE]


def put_under(server: Any, dispatcher: Dispatcher) -> None:
    """Start the dispatcher and have it serve the classic server."""
    work = Work(server, books(server), server._forget_parent, server._become_branch, server._be_ready)
    vars(server)[_LIVE] = StartedDispatcher(dispatcher, work)


def dispatched(server: Any, request: Request, client_address: Address) -> bool:
    """Give the request to the override's dispatcher; False if there is none, or it drives but no run is under way (`handle_request`)."""
    live = live_part(server)
    if live is None or (live.drive is not None and vars(server).get(_RUN) is None):
        return False
    live.process(request, client_address)
    return True


def close(server: Any) -> None:
    """Close the override's live part, after waiting for its requests if the server's class waits for its own."""
    undrained = vars(server).pop(_UNDRAINED, None)
    if undrained is not None:
        undrained.abandon()
    live = vars(server).pop(_LIVE, None)
    if live is not None:
        if getattr(server, "block_on_close", True) and not getattr(server, "daemon_threads", False):
            live.wait(None)
        live.close()
