"""A server in its own process: ``python -m faults.served HANDLER DISPATCHER [LIMITS]`` prints ``port NUMBER`` and serves.

Its answer to a line contains the process's pid and a hash of both, so that a client detects an answer meant for another. The log, and at
the end the outcomes, go to standard error. If FAIL_FROM is set in the environment, each SIGUSR1 makes one memory allocation fail: the
first signal the one with that number, counted from the signal on, and each later signal the next number.
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
"""The drain time in seconds."""


def answer(line: bytes, pid: int) -> bytes:
    """Return the process's answer to the line, both without a newline."""
    if line == b"PING\r":  # for the clients of the benchmark
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
    """A connection holds a thread from its first byte on, for one line."""

    def handle(self) -> None:
        self.wfile.write(answer(self.rfile.readline().removesuffix(b"\n"), os.getpid()) + b"\n")


class Awaited(AsyncStreamRequestHandler):
    async def handle(self) -> None:
        async for line in self.reader:
            self.writer.write(answer(line.removesuffix(b"\n"), os.getpid()) + b"\n")
            await self.writer.drain()


HANDLERS = {"messages": Messages, "conversation": Conversation, "plain": Plain, "awaited": Awaited}


class Watcher:
    """An observer that prints the pids of workers."""

    def worker_started(self, server: Any, worker: int) -> None:
        os.write(2, b"started %d\n" % worker)


def let_allocations_fail(first: int) -> None:
    """Make each SIGUSR1 fail the n-th memory allocation after it; n starts at `first` and grows by one each time."""
    import _testcapi

    numbers = itertools.count(first)

    def arm(_number: int, _frame: object) -> None:
        _testcapi.remove_mem_hooks()  # the previous allocation may never have been reached
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
