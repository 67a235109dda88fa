"""A handler that forks is on both sides of the fork: telling the child's side, and letting it end as it wants to."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

from socketkit._system import logs


class _Forks:
    """How often this process was forked off another, counted from the program's start."""

    behind = 0

    def note(self) -> None:
        self.behind += 1


forks = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forks.note)


def leave(error: SystemExit) -> NoReturn:
    """End the process, which a handler forked, as that handler asked for: without any clean-up of the server that it is a copy of."""
    code = error.code
    if code is not None and not isinstance(code, int):
        with contextlib.suppress(Exception):  # it may be of any kind
            logs.write(sys.stderr, f"{code}\n")
        code = 1
    logs.leave((code or 0) & 0xFF)
