"""Layers that break one promise each. They want a greeting before the first byte."""

import socket
import time
from typing import ClassVar

import attrs

from socketkit.errors import ConfigError
from socketkit.seams import Answered

GREETING = b"hello, I would like to be served, please\n"


def client(_self, sock):
    sock.sendall(GREETING)
    return sock


class Handshake:
    sends = False
    read = b""

    def __init__(self, request, client_address):
        self.request = request
        self.client_address = client_address

    def go_on(self):
        while len(self.read) < len(GREETING):
            try:
                byte = self.request.recv(1)
            except BlockingIOError:
                return None
            if not byte:
                raise ConnectionAbortedError
            self.read += byte
        if self.read != GREETING:
            raise ValueError("no greeting")
        return self.client_address


@attrs.frozen
class Sound:
    """Waits without a thread."""

    Part = Handshake

    def begin(self, request, client_address):
        return self.Part(request, client_address)


@attrs.frozen
class Waiting:
    """Waits in the thread that calls it."""

    def wrap(self, request, client_address):
        return request, Handshake(request, client_address).go_on()


class Wrapped:
    """Stands for the socket."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


@attrs.frozen
class Replacing(Waiting):
    """Gives handlers another object."""

    replaces_socket = True
    Part = Wrapped

    def wrap(self, request, client_address):
        request, client_address = super().wrap(request, client_address)
        return self.Part(request), client_address


# --- what it is -------------------------------------------------------------------------------------------------------


class Both(Sound):
    def wrap(self, request, client_address):
        return request, client_address


class Fussy(Sound):
    def check(self, handler):
        raise TypeError("not this one")


# --- a handshake of its own -------------------------------------------------------------------------------------------


class Blocking(Sound):
    class Part(Handshake):
        def go_on(self):
            self.request.settimeout(5)
            return super().go_on()


class Content(Sound):
    class Part(Handshake):
        def go_on(self):
            try:
                return super().go_on()
            except ConnectionAbortedError:
                return self.client_address


class Eager(Sound):
    def begin(self, request, client_address):
        handshake = super().begin(request, client_address)
        handshake.go_on()
        return handshake


class Copying(Sound):
    def begin(self, request, client_address):
        return super().begin(request.dup(), client_address)


class Keeping(Waiting):
    kept: ClassVar[list] = []

    def wrap(self, request, client_address):
        self.kept.append(request.dup())
        return super().wrap(request, client_address)


# --- in a server ------------------------------------------------------------------------------------------------------


class Forgetful(Waiting):
    def wrap(self, request, client_address):
        return super().wrap(request, client_address)[0], None


class Undeclared(Replacing):
    replaces_socket = False


class Restless(Waiting):
    def wrap(self, request, client_address):
        request.settimeout(7)
        return super().wrap(request, client_address)


class Single(Sound):
    started: ClassVar[list] = []

    def start(self):
        if self.started:
            raise ConfigError.of("it has a server already")
        self.started.append(self)
        return Sound()


class Cropping(Replacing):
    class Part(Wrapped):
        def sendall(self, data):
            self.inner.sendall(data[:10_000])


class Endless(Replacing):
    class Part(Wrapped):
        kept: ClassVar[list] = []

        def shutdown(self, how):
            pass

        def close(self):
            self.kept.append(self)


class OneLine(Replacing):
    """Loses what comes in one piece with a line."""

    class Part(Wrapped):
        def makefile(self, mode, buffering):
            return socket.SocketIO(self, "r")

        def recv_into(self, buffer, *rest):
            line = b"".join(self.inner.recv(len(buffer), *rest).partition(b"\n")[:2])
            buffer[: len(line)] = line
            return len(line)


class Presuming(Sound):
    """Takes for granted that the greeting comes in one piece."""

    class Part(Handshake):
        def go_on(self):
            try:
                if self.request.recv(len(GREETING)) != GREETING:
                    raise ValueError("no greeting")
            except BlockingIOError:
                return None
            return self.client_address


class Greedy(Sound):
    """Reads all there is."""

    class Part(Handshake):
        def go_on(self):
            try:
                if not self.request.recv(4096).startswith(GREETING):
                    raise ValueError("no greeting")
            except BlockingIOError:
                return None
            return self.client_address


class Unforgiving(Sound):
    """Serves nobody after it has met somebody rude."""

    class Part(Handshake):
        rude: ClassVar[list] = []

        def go_on(self):
            try:
                if self.rude:
                    raise ValueError("no more")
                return super().go_on()
            except (OSError, ValueError):
                self.rude.append(self)
                raise


class OneByOne(Sound):
    """Lets all clients wait for the first."""

    class Part(Handshake):
        line: ClassVar[list] = []

        def go_on(self):
            if self not in self.line:
                self.line.append(self)
            if self.line[0] is not self:
                time.sleep(0.001)
                return None
            return super().go_on()


class Welcoming(Sound):
    """Answers every client itself."""

    answers = True

    class Part(Handshake):
        def go_on(self):
            if super().go_on() is not None:
                self.request.sendall(b"welcome\n")
                raise Answered


class Ashamed(Welcoming):
    """Answers as if that were a failure."""

    class Part(Welcoming.Part):
        def go_on(self):
            try:
                return super().go_on()
            except Answered:
                raise ValueError("answered") from None


class Leaky(Sound):
    def begin(self, request, client_address):
        self.kept.append(request.dup())
        return super().begin(request, client_address)

    kept: ClassVar[list] = []


SOUND = (Sound, Waiting, Replacing, Welcoming)
MUTANTS = {
    "test_shape": (Both, "a Both has wrap and begin; it needs one of them"),
    "test_check": (Fussy, "check() raised TypeError (not this one) for"),
    "test_never_blocks": (Blocking, "go_on() without a word from the client had not returned after 1 s; it must not block"),
    "test_client_gone": (Content, "it must raise OSError or ValueError"),
    "test_begin_reads_nothing": (Eager, "begin() has read"),
    "test_request_is_all": (Copying, "after `request` of a handshake was closed, the connection is still open"),
    "test_failure_leaves_all": (Keeping, "after the layer has raised and the request was closed, the connection is still open"),
    "test_address": (Forgetful, "the handler got the address None of a client at ('127.0.0.1', "),
    "test_replaces_socket": (Undeclared, "the handler got a Wrapped; declare replaces_socket = True"),
    "test_no_timeout": (Restless, "the handler got a request with a timeout of 7.0 s; restore what the layer changes"),
    "test_two_servers": (Single, "it has a server already"),
    "test_passes_both_ways": (Cropping, "of 60000 bytes, 10000 came back"),
    "test_end_of_stream": (Endless, "the server had neither answered nor closed a connection after 1 s"),
    "test_conversation": (OneLine, "the server had neither answered nor closed a connection after 1 s"),
    "test_byte_by_byte": (Presuming, "through a line that carries one byte at a time, the answer was ''"),
    "test_together": (Greedy, "the server had neither answered nor closed a connection after 1 s"),
    "test_garbage": (Unforgiving, "a client that sent 'hello' was answered ''"),
    "test_silent_clients": (OneByOne, "beside 50 silent clients, another one was not answered"),
    "test_answers": (Ashamed, "the requests were counted as {'failed': 2}, not {'finished': 2}"),
    "test_leaves_nothing": (Leaky, "after the server was closed there is still: descriptors"),
}
