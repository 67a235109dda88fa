"""A server in a process of its own: ``python -m faults.served HANDLER DISPATCHER [LIMITS]`` prints ``port NUMBER`` and serves.

Its answer to a line names the process that gave it and has a hash of both, so that a client sees an answer that is not its own. What
it logs, and at the end its outcomes, go to standard error. With FAIL_FROM in its environment each SIGUSR1 lets one allocation of memory
fail: first the one with that number, counted from the signal on, and then each time the next.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import signal
import sys
from typing import Any

from socketkit import TCP, AsyncStreamRequestHandler, ConversationHandler, Graceful, MessageHandler, Server, StreamRequestHandler

DRAIN = 1.0
"""Seconds that it drains when it is told to stop."""


def answer(line: bytes, pid: int) -> bytes:
    """Return what the process answers to the line; neither has its newline."""
    if line == b"PING\r":  # the benchmark's clients
        return b"+PONG\r"
    told = b"%d %s" % (pid, line)
    return told + b" " + hashlib.sha256(told).hexdigest().encode()


class Messages(MessageHandler):
    """A connection waits without a thread until a line is complete."""

    def reply(self, message: bytes, client_address: Any) -> bytes:
        return answer(message, os.getpid())


class Conversation(ConversationHandler):
    """A connection waits without a thread for its next line."""

    def handle_one_request(self) -> None:
        self.wfile.write(answer(self.rfile.readline().removesuffix(b"\n"), os.getpid()) + b"\n")


class Plain(StreamRequestHandler):
    """A connection has a thread from its first byte on, for one line."""

    def handle(self) -> None:
        self.wfile.write(answer(self.rfile.readline().removesuffix(b"\n"), os.getpid()) + b"\n")


class Awaited(AsyncStreamRequestHandler):
    async def handle(self) -> None:
        async for line in self.reader:
            self.writer.write(answer(line.removesuffix(b"\n"), os.getpid()) + b"\n")
            await self.writer.drain()


HANDLERS = {"messages": Messages, "conversation": Conversation, "plain": Plain, "awaited": Awaited}


class Watcher:
    """An observer that says which workers there are."""

    def worker_started(self, server: Any, worker: int) -> None:
        os.write(2, b"started %d\n" % worker)


def let_allocations_fail(first: int) -> None:
    """Have each SIGUSR1 let one allocation of this process fail, which is the n-th after it: with n from `first` on."""
    import _testcapi

    numbers = itertools.count(first)

    def arm(_number: int, _frame: object) -> None:
        _testcapi.remove_mem_hooks()  # the one before may never have come to its number
        number = next(numbers)
        os.write(1, b"armed %d\n" % number)
        _testcapi.set_nomemory(number, number + 1)

    signal.signal(signal.SIGUSR1, arm)


def main(handler: str, dispatcher: str, limits: str = "") -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if "FAIL_FROM" in os.environ:
        let_allocations_fail(int(os.environ["FAIL_FROM"]))
    options: Any = {"lifecycle": Graceful(drain=DRAIN), "observers": [Watcher()]}
    if limits:
        options["limits"] = limits
    with Server(TCP("127.0.0.1", 0), HANDLERS[handler], dispatcher=dispatcher, **options) as server:
        print("port", server.addresses[0][1], flush=True)
        server.serve_forever()
    stats = server.stats()
    print("outcomes", stats.active, *(f"{name}={count}" for name, count in stats.outcomes.items()), file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
