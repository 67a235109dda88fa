"""Handlers that other interpreters import. What a test wants to know of them, they answer."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import Any

import attrs

from socketkit import DatagramRequestHandler, Server, StreamRequestHandler

IDENTITY = object()
"""Another object in each interpreter."""


class Words(StreamRequestHandler):
    """Answers each line of a client. Says first which process and interpreter it is in."""

    speaks_first = True

    def setup(self):
        super().setup()
        self.wfile.write(b"%d %d\n" % (os.getpid(), id(IDENTITY)))

    def handle(self):
        for line in self.rfile:
            word, _, rest = line.decode().strip().partition(" ")
            self.wfile.write(f"{getattr(self, word)(rest)}\n".encode())

    def echo(self, rest):
        return rest

    def log(self, rest):
        logging.getLogger("app").log(int(rest), "said at %s", rest)
        return "said"

    def stop(self, _rest):
        self.server.stop()
        return "stopping"

    def stick(self, _rest):
        self.wfile.write(b"stuck\n")
        while True:  # it returns from no system call by itself, and its socket does not matter to it
            time.sleep(3600)

    def spin(self, _rest):
        self.wfile.write(b"spinning\n")
        while True:
            pass

    def attribute(self, rest):
        return getattr(self.server, rest, "missing")

    def kind(self, _rest):
        return type(self.server).__qualname__

    def limit(self, rest):
        return getattr(self.server.limits, rest)

    def path(self, _rest):
        return sys.path[0]


class Back(DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read()[::-1])


class Special(Server):
    """A server with a constructor of its own, an attribute, and a step that it overrides."""

    def __init__(self, *arguments: Any, greeting: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.greeting = greeting

    def verify_request(self, request, client_address):
        request.sendall(self.greeting.encode())
        return True


class Watching:
    """An observer that leaves a mark in a file for each request that ends."""

    def __init__(self, file):
        self.file = file

    def request_ended(self, _server, _client_address, outcome, _seconds):
        with open(self.file, "a") as marks:
            marks.write(f"{id(IDENTITY)} {outcome}\n")


class Tied(Watching):
    """An observer that cannot be copied."""

    def __init__(self, file):
        super().__init__(file)
        self.lock = threading.Lock()


@attrs.frozen
class Breaks:
    """A dispatcher whose loop fails after this many requests."""

    good: int = 0

    def start(self, _work):
        return _Breaking(self.good)


class _Breaking:
    def __init__(self, good):
        self._good = good

    def drive(self, open_intake):
        with open_intake() as intake:
            for _ in range(self._good):
                unit = intake.take()
                if unit is None:
                    return
                unit()
            raise MemoryError("asked for")

    def wait(self, _timeout):
        return True

    def close(self):
        pass
