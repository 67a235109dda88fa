"""What stands above the strategies that classic classes are named for, in the whole process: `socketkit run` chooses it.

Classic servers have an attribute for every name that a program might use, so what is theirs alone is kept in their dictionaries under
names that are mangled for `BaseServer`.
"""

# ruff: noqa: SLF001 - this is the half of classic servers that no program sees

from __future__ import annotations

from typing import Any

from socketkit._engine.ledger import books
from socketkit._engine.work import StartedDispatcher, Work
from socketkit.seams import Address, Dispatcher, Lifecycle, Request

_LIVE, _RUN, _UNDRAINED = "_BaseServer__live", "_BaseServer__run", "_BaseServer__undrained"


class Override:
    """The choice. None: each server keeps the strategy of its class, and the classic lifecycle."""

    dispatcher: Dispatcher | None = None
    lifecycle: Lifecycle | None = None
    nodelay: bool = False
    """Whether servers of connections switch Nagle's delay off."""


def live_part(server: Any) -> Any:
    """Return the live part of the dispatcher above the server's class, started when first needed; None if there is none."""
    if Override.dispatcher is None and Override.lifecycle is None:
        return None
    attributes = vars(server)
    if attributes.get(_LIVE) is None:
        put_under(server, Override.dispatcher or server._own_dispatcher())
    return attributes[_LIVE]


def put_under(server: Any, dispatcher: Dispatcher) -> None:
    """Start a dispatcher above the server's class."""
    work = Work(server, books(server), server._forget_parent, server._become_branch, server._be_ready)
    vars(server)[_LIVE] = StartedDispatcher(dispatcher, work)


def dispatched(server: Any, request: Request, client_address: Address) -> bool:
    """Give the request to the chosen dispatcher; False if there is none, or it drives and is not driving, as in `handle_request`."""
    live = live_part(server)
    if live is None or (live.drive is not None and vars(server).get(_RUN) is None):
        return False
    live.process(request, client_address)
    return True


def close(server: Any) -> None:
    """Release the chosen dispatcher's live part; wait for its requests if the server's class waits for its own."""
    undrained = vars(server).pop(_UNDRAINED, None)
    if undrained is not None:
        undrained.abandon()
    live = vars(server).pop(_LIVE, None)
    if live is not None:
        if getattr(server, "block_on_close", True) and not getattr(server, "daemon_threads", False):
            live.wait(None)
        live.close()
