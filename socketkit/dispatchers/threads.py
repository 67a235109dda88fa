"""A new thread for each request, like `socketserver.ThreadingMixIn`."""

from __future__ import annotations

from typing import ClassVar

import attrs

from socketkit._system.threads import ThreadList, start_thread
from socketkit.seams import Address, Request, Work


@attrs.frozen
class Threads:
    """One thread for each request, without a limit."""

    daemon: bool = attrs.field(default=False, kw_only=True)
    """True: the interpreter may exit while requests run, and a server that does not drain closes without waiting for them."""

    requires: ClassVar[frozenset[str]] = frozenset({"threads"})

    def daemonized(self) -> Threads:
        """Return the recipe with daemon threads."""
        return attrs.evolve(self, daemon=True)

    def start(self, work: Work) -> _ThreadPerRequest:
        """Return the live part."""
        return _ThreadPerRequest(work, self.daemon)


@attrs.define(eq=False)
class _ThreadPerRequest:
    work: Work
    daemon: bool
    threads: ThreadList = attrs.field(factory=lambda: ThreadList(daemons=True))  # which a drain waits for, too

    def dispatch(self, request: Request, client_address: Address) -> None:
        start_thread(self.work.run, (request, client_address), self.threads, daemon=self.daemon)

    def wait(self, timeout: float | None) -> bool:
        return self.threads.join(timeout)

    def close(self) -> None:
        pass
