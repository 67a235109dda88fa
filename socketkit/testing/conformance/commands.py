"""Handlers that do what a client tells them, so that a check can direct them wherever they run: in a thread, a process, an event loop."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

from socketkit._system import interpreters
from socketkit._system.sockets import is_readable
from socketkit.handlers.base import DatagramRequestHandler, StreamRequestHandler
from socketkit.handlers.conversation import ConversationHandler
from socketkit.handlers.coroutines import AsyncStreamRequestHandler
from socketkit.handlers.messages import MessageHandler
from socketkit.seams.messages import reply_of
from socketkit.testing.clients import hang_up
from socketkit.testing.conformance.promises import expect

_FACTS: dict[str, Callable[[Any], object]] = {
    "address": lambda handler: handler.client_address,
    "process": lambda _handler: os.getpid(),
    "interpreter": lambda _handler: interpreters.current(),
    "type": lambda handler: type(handler.request).__name__,
    "timeout": lambda handler: handler.request.gettimeout(),
}


class Commands(StreamRequestHandler):
    """One command per connection.

    ``echo TEXT``; ``hold``, until another line comes; ``raise``; ``exit``; ``close``; ``stop``, the server; and ``address``, ``type``
    and ``timeout``, which describe what the handler was given, and ``process`` and ``interpreter``, which say where it runs.
    """

    speaks_first = True  # so that a silent client reaches it too

    def handle(self) -> None:
        """Obey."""
        self.obey(self.rfile.readline())

    def obey(self, line: bytes) -> None:
        """Obey one line."""
        command, _, text = line.decode().strip().partition(" ")
        if command == "echo":
            self.wfile.write(f"{text}\n".encode())
        elif command == "hold":
            self.wfile.write(b"held\n")
            self.wfile.write(b"done\n" if self.rfile.readline() else b"")
        elif command == "stop":
            self.server.stop(wait=False)
            self.wfile.write(b"stopping\n")
        elif command in _FACTS:
            self.wfile.write(f"{_FACTS[command](self)}\n".encode())
        else:
            misbehave(command, self.request)


class Obeys:
    """What makes an asynchronous handler do what the clients of the checks say, whichever library its event loop is of.

    Derive a handler from this class first, then from the stream handler of your library, and define `read_line` and `write`.
    """

    request: Any
    server: Any

    async def read_line(self) -> bytes:
        """Return the client's next line, with its line end; nothing if the client has ended its side."""
        raise NotImplementedError(f"{type(self).__name__} needs a coroutine read_line(), which returns the client's next line")

    async def write(self, data: bytes) -> None:
        """Send data to the client."""
        raise NotImplementedError(f"{type(self).__name__} needs a coroutine write(data), which sends data to the client")

    async def handle(self) -> None:
        """Obey one command: see `Commands`."""
        command, _, text = (await self.read_line()).decode().strip().partition(" ")
        if command == "echo":
            await self.write(f"{text}\n".encode())
        elif command == "hold":
            await self.write(b"held\n")
            if await self.read_line():
                await self.write(b"done\n")
        elif command in _FACTS:
            await self.write(f"{_FACTS[command](self)}\n".encode())
        elif command == "stop":
            self.server.stop(wait=False)
            await self.write(b"stopping\n")
        else:
            misbehave(command, self.request)


class AsyncCommands(Obeys, AsyncStreamRequestHandler):
    """The same as a coroutine of asyncio."""

    async def read_line(self) -> bytes:
        """Return the next line."""
        return await self.reader.readline()

    async def write(self, data: bytes) -> None:
        """Send data."""
        self.writer.write(data)


class MessageCommands(Commands):
    """The same for a dispatcher that has replies computed elsewhere: `reply` obeys each command that needs no connection."""

    replies_to_messages = True

    def obey(self, line: bytes) -> None:
        """Obey one line."""
        if line.split(b" ")[0].strip() in {b"echo", b"raise", b"exit"}:
            self.wfile.write(reply_of(self, line) or b"")
        else:
            super().obey(line)

    def reply(self, message: bytes, _client_address: Any) -> bytes:
        """Obey, wherever this runs."""
        command, _, text = message.decode().strip().partition(" ")
        misbehave(command, None)
        return f"{text}\n".encode()


def misbehave(command: str, request: Any) -> None:
    """Do what a handler should not."""
    if command == "raise":
        raise RuntimeError("a handler of a check raises this on purpose")
    if command == "exit":
        raise SystemExit(3)
    if command == "close":
        request.close()


class Lines(ConversationHandler):
    """A conversation: answers each line with itself."""

    def handle_one_request(self) -> None:
        """Answer one line."""
        self.wfile.write(self.rfile.readline())


class Mirror(DatagramRequestHandler):
    """Answers a datagram with itself."""

    def handle(self) -> None:
        """Answer it."""
        self.wfile.write(self.rfile.read())


class Repeat(MessageHandler):
    """`Lines` and `Mirror` for a dispatcher that has replies computed elsewhere."""

    def reply(self, message: bytes, _client_address: Any) -> bytes:
        """Return the message."""
        return message


class Client:
    """A client that tells a handler what to do. patience: seconds that it waits for an answer."""

    def __init__(self, sock: socket.socket, patience: float) -> None:
        self._sock = sock
        self.address = sock.getsockname()
        self._patience = patience
        self._sock.settimeout(patience)
        self._file = sock.makefile("rb")

    def tell(self, *commands: str) -> None:
        """Send commands, each as a line."""
        self._sock.sendall("".join(f"{each}\n" for each in commands).encode())

    def hear(self) -> str:
        """Return the next line; nothing if the server has closed or reset the connection. Raises: BrokenPromiseError if none comes."""
        try:
            return self._file.readline().decode().rstrip("\n")
        except TimeoutError:
            expect(False, f"the server had neither answered nor closed a connection after {self._patience:g} s")
            raise
        except ConnectionError:
            return ""

    def ask(self, command: str) -> str:
        """Send a command and return the answer."""
        self.tell(command)
        return self.hear()

    @property
    def is_answered(self) -> bool:
        """Whether there is something to hear now."""
        return is_readable(self._sock)

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        hang_up(self._sock)


@contextlib.contextmanager
def client(address: Any, patience: float) -> Iterator[Client]:
    """Yield a client connected over TCP."""
    found = Client(socket.create_connection(address, patience), patience)
    try:
        yield found
    finally:
        found.close()
