"""Handlers that fork: recognise the child, which runs the same handler, and let it exit as the handler asks."""

from __future__ import annotations

import contextlib
import os
import sys

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import NoReturn


class _Forks:
    """The number of forks between the program's first process and this one, and the last of these processes that serves one request."""

    behind = 0
    for_a_request = 0  # its pid; a child that the handler forks has another

    def note_request(self) -> None:
        """Record that this process was forked for a request, so that the server decides when it ends."""
        self.for_a_request = os.getpid()

    def note(self) -> None:
        self.behind += 1


forks = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forks.note)


def leave_if_forked(error: BaseException, behind: int) -> None:
    """End this process if `error` is SystemExit and a handler has forked the process since `forks.behind` was `behind`."""
    if isinstance(error, SystemExit) and forks.behind != behind:
        leave(error)


def leave(error: SystemExit) -> NoReturn:
    """End this process, which a handler forked, with the exit code of `error`, without running the parent server's clean-up."""
    from socketkit._system import logs  # noqa: PLC0415 - few handlers fork, and every classic server imports this module

    code = error.code
    if code is not None and not isinstance(code, int):
        with contextlib.suppress(Exception):  # its `str` may raise anything
            logs.write(sys.stderr, f"{code}\n")
        code = 1
    logs.leave((code or 0) & 0xFF)
