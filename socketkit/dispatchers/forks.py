"""A child process for each request, like `socketserver.ForkingMixIn`, but it only reaps children of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any, ClassVar

import attrs

from socketkit._system.children import end_request, fork, keep_private, pidfd, reap, wait_any
from socketkit.seams import Address, Request, Watcher, Work
from socketkit.seams.validators import at_least

EXIT_CODES = {"finished": 0, "failed": 1, "aborted": 75, "refused": 77, "timed out": 124}
"""Exit codes by which a child reports the outcome to its parent. The last three are EX_TEMPFAIL and EX_NOPERM of sysexits.h and the exit
code of timeout(1): a handler that exits is unlikely to use them."""

UNSHARING = 1.0
"""Most seconds to wait for newly forked children to close their copies of the listeners."""

_OUTCOMES = {code: outcome for outcome, code in EXIT_CODES.items()}


@attrs.frozen
class Forks:
    """A child process for each request, up to a limit. Beyond it, clients wait in the kernel's queue."""

    max_children: int = attrs.field(default=40, validator=at_least(1))
    """Most children that run at once."""

    requires: ClassVar[frozenset[str]] = frozenset({"fork"})
    forks_requests: ClassVar[bool] = True

    def max_handlers(self, handler: Any) -> int:  # noqa: ARG002 - the same for every handler
        """Return the most handlers at once: one in each child."""
        return self.max_children

    def start(self, work: Work) -> _ForkPerRequest:
        """Return the live part."""
        return _ForkPerRequest(work, self.max_children)


@attrs.define(eq=False)
class _Child:
    request: Request
    exit_descriptor: int | None
    """Becomes readable when the child ends: its pidfd, or the read end of a pipe whose write end only the child holds.
    None: no descriptor was left."""


@attrs.define(eq=False)
class _ForkPerRequest:
    work: Work
    max_children: int
    children: dict[int, _Child] = attrs.field(factory=dict)
    loop: Watcher | None = None
    witness: tuple[socket.socket, socket.socket] | None = None
    """A socket pair. Each child closes its copy of the second end once it has closed the listeners."""

    def attach(self, loop: Watcher | None) -> None:
        self.loop = loop
        for pid, child in self.children.items():  # of the run before
            self._watch(pid, child)
        self._hold_if_full()

    def dispatch(self, request: Request, client_address: Address) -> None:
        while self.loop is None and len(self.children) >= self.max_children:
            wait_any(self.children, None)  # there is no loop to hold: a single request is being handled
            self._collect(*self.children)
        self._have_witness()
        reader, writer = os.pipe() if not hasattr(os, "pidfd_open") else (None, None)
        try:
            pid = fork(lambda: self._serve(request, client_address))
        except OSError:
            _close(reader, writer)
            raise
        descriptor = pidfd(pid) if reader is None else reader
        _close(writer)
        child = self.children[pid] = _Child(request, descriptor)
        self._watch(pid, child)
        self._hold_if_full()
        self.work.release(request)  # last, because it calls a server hook that may raise

    def wait(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        self._collect(*self.children)
        while self.children:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            wait_any(self.children, left)
            self._collect(*self.children)
        return True

    def force(self) -> None:
        for pid in self.children:
            end_request(pid)

    def cut(self, request: Request) -> None:
        for pid, child in self.children.items():
            if child.request is request:
                end_request(pid)

    def unshare(self) -> None:
        if self.witness is not None:
            here, there = self.witness
            there.close()
            here.settimeout(UNSHARING)
            with contextlib.suppress(TimeoutError):
                here.recv(1)
            self.close()

    def close(self) -> None:
        if self.witness is not None:
            for end in self.witness:
                end.close()
            self.witness = None

    def _have_witness(self) -> None:
        if self.witness is None:
            with contextlib.suppress(OSError):  # no descriptor left: go on without a witness
                self.witness = socket.socketpair()
                keep_private(self.witness[1], share=True)

    def _watch(self, pid: int, child: _Child) -> None:
        if self.loop is not None and child.exit_descriptor is not None:
            self.loop.watch(child.exit_descriptor, lambda: self._collect(pid))

    def _hold_if_full(self) -> None:
        if self.loop is not None and len(self.children) >= self.max_children:
            self.loop.hold()

    def _serve(self, request: Request, client_address: Address) -> int:
        for child in self.children.values():
            _close(child.exit_descriptor)
        if not isinstance(request, tuple):
            self.work.forget()  # now rather than in `run_alone`: closing the witness below reports that it is done
        self.close()
        return EXIT_CODES.get(self.work.run_alone(request, client_address), 1)

    def _collect(self, *pids: int) -> None:
        for pid in pids:
            code = reap(pid)
            if code is None:
                continue
            child = self.children.pop(pid)
            if child.exit_descriptor is not None and self.loop is not None:
                self.loop.unwatch(child.exit_descriptor)
            _close(child.exit_descriptor)
            self.work.settle(child.request, _OUTCOMES.get(code, "failed" if code > 0 else "died"))
            if self.loop is not None and len(self.children) == self.max_children - 1:
                self.loop.release()


def _close(*descriptors: int | None) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)
