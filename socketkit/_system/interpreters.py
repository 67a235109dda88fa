"""Interpreters of this process besides the main one, each with its own modules and its own interpreter lock.

Python 3.14 and later. Sources: PEP 684; PEP 734; CPython's concurrent/interpreters.
"""

from __future__ import annotations

import sys
from typing import Any

from socketkit._system import log_relay

_PREPARE = """
import sys
sys.path[:] = {path!r}
from socketkit._system import log_relay
log_relay.begin({writer!r}, {levels!r})
"""


def create() -> Any:
    """Return a new `concurrent.interpreters.Interpreter`, in which daemon threads may run. Owner: the caller, who closes it.

    There is no public way to allow daemon threads. Without them, one handler that never returns would keep the program from ending.
    Raises: RuntimeError if the system has no memory or thread available.
    """
    from concurrent import interpreters  # type: ignore[attr-defined] # noqa: PLC0415 - as above

    import _interpreters  # type: ignore[import-not-found] # noqa: PLC0415 - only Python 3.14 and later has it

    config = _interpreters.new_config("isolated", allow_daemon_threads=True)
    return interpreters.Interpreter(_interpreters.create(config, reqrefs=True))


def prepare(interpreter: Any, relay: log_relay.Relay) -> None:
    """Give a new interpreter this one's module path, and have what is logged there handled here.

    Raises: concurrent.interpreters.ExecutionFailed.
    """
    try:
        interpreter.exec(_PREPARE.format(path=sys.path, writer=relay.writer, levels=log_relay.levels()))
    except BaseException:
        relay.abandon()  # `begin` is the last step
        raise


def current() -> int:
    """Return the number of the interpreter that calls this. 0 is the main one, and the only one before Python 3.14."""
    if sys.version_info < (3, 14):
        return 0
    from concurrent import interpreters  # type: ignore[attr-defined] # noqa: PLC0415 - only Python 3.14 and later has it

    return int(interpreters.get_current().id)
