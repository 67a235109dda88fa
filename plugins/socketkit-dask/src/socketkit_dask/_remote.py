"""What workers run. They import this module, the handler's, and nothing that serves."""

from __future__ import annotations

import signal
from typing import Any, TypeAlias

from socketkit.seams import Address, RepliesToMessages
from socketkit.seams.messages import answer

Outcome: TypeAlias = tuple[bytes | None, BaseException | None]
"""The reply to a message, and what `reply` raised instead."""


def attempt(handler: type[RepliesToMessages], message: bytes, client_address: Address) -> Outcome:
    """Return what becomes of a message.

    An error is a result like any other: Dask would write the message to the worker's log, and take SystemExit as meant for the worker.
    """
    try:
        return answer(handler, message, client_address), None
    except BaseException as error:  # noqa: BLE001 - raised again in the server
        return None, error.with_traceback(None)


def dask_setup(_worker: Any) -> None:
    """In a process of the local cluster, leave it to the server when to end. Dask calls this when the process starts.

    A terminal and a service manager send their signals to the whole group, and the server drains. A handler that does nothing is reset in
    the programs that a reply starts; an ignored signal would stay ignored there. Source: execve(2).
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
