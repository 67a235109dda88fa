"""What the compatibility tests share: classic servers that serve for a while, their clients, and programs under either library."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.support import TESTS, python
from socketkit.testing.programs import with_path

OLD, NEW = "socketserver", "socketkit.socketserver"

LOCAL = ("127.0.0.1", 0)

WAIT = 10.0
"""Seconds after which something that should happen is thought not to."""

DROP_IN = "import importlib, sys; sys.modules['socketserver'] = importlib.import_module({library!r})\n"


def program(source: str, *arguments: str, library: str = NEW, **options: Any) -> str:
    """Run Python source as a program in which `socketserver` is that library; return what it prints."""
    return python(DROP_IN.format(library=library) + source, *arguments, **options).stdout


def example(name: str, library: str = NEW) -> tuple[str, ...]:
    """Return the words that start an example program in which `socketserver` is that library."""
    path = Path(__file__).parent / "examples" / name
    start = DROP_IN.format(library=library) + f"import runpy; sys.argv[0] = {name!r}; runpy.run_path({str(path)!r}, run_name='__main__')"
    return (sys.executable, "-u", "-X", "faulthandler", "-c", start)


ENVIRONMENT = with_path(TESTS)


@contextlib.contextmanager
def serving(server: Any, poll_interval: float = 0.02) -> Iterator[threading.Thread]:
    """Serve in a thread while the block runs; then stop the loop and close the server."""
    with server, looping(server, poll_interval) as thread:
        yield thread


@contextlib.contextmanager
def looping(server: Any, poll_interval: float = 0.02) -> Iterator[threading.Thread]:
    """Serve in a thread while the block runs; then stop the loop and leave the server open."""
    thread = threading.Thread(target=server.serve_forever, args=(poll_interval,))
    thread.start()
    try:
        yield thread
    finally:
        server.shutdown()
        thread.join(WAIT)
        assert not thread.is_alive()


def asleep(thread: threading.Thread) -> bool:
    """Wait until the thread is in a selector's wait, past all that it looks at before; return whether it got there in time."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        frame = sys._current_frames().get(thread.ident or 0)
        if frame is not None and frame.f_code.co_name == "select" and frame.f_globals["__name__"] == "selectors":
            return True
        time.sleep(0.001)
    return False


@contextlib.contextmanager
def connection(server: Any) -> Iterator[socket.socket]:
    """Connect to the server."""
    with socket.socket(server.address_family, socket.SOCK_STREAM) as client:
        client.settimeout(WAIT)
        client.connect(server.server_address)
        yield client


def talk(server: Any, data: bytes) -> bytes:
    """Connect, send the data, and return all that comes back."""
    with connection(server) as client:
        client.sendall(data)
        return read(client)


def read(client: socket.socket) -> bytes:
    """Return all that comes until the peer has said that nothing more does."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def ask(server: Any, data: bytes, name: str | None = None) -> bytes:
    """Send one datagram and return the one that comes back. On a Unix socket the sender needs a name to be answered at."""
    with socket.socket(server.address_family, socket.SOCK_DGRAM) as client:
        client.settimeout(WAIT)
        client.bind(name if name is not None else LOCAL)
        client.sendto(data, server.server_address)
        return client.recv(65536)


def exercise(library: Any, server_class: str, handler_class: str, folder: str, requests: int = 5) -> list[bytes]:
    """Serve a few requests, one after the other, with a server and a handler of these names; return the replies.

    The handler answers each with what it was sent, in capitals.
    """
    base = getattr(library, handler_class)
    unix, datagram = "Unix" in server_class, "UDP" in server_class or "Datagram" in server_class

    class Handler(base):
        def handle(self) -> None:
            if hasattr(self, "wfile"):
                self.wfile.write(self.rfile.readline().upper())
            elif datagram:
                data, sock = self.request
                sock.sendto(data.upper(), self.client_address)
            else:
                self.request.sendall(self.request.recv(100).upper())

    server = getattr(library, server_class)(f"{folder}/server" if unix else LOCAL, Handler)
    with serving(server):
        lines = [b"request %d\n" % number for number in range(requests)]
        if datagram:
            return [ask(server, line, f"{folder}/client{number}" if unix else None) for number, line in enumerate(lines)]
        return [talk(server, line) for line in lines]
