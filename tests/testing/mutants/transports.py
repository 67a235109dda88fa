"""Transports that break one promise each. All go on from a sound one."""

import contextlib
import socket

import attrs

from socketkit.errors import ListenError
from socketkit.transports.tcp import TCP


class Altered:
    """A sound listener; subclasses replace what is to be wrong."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


@attrs.frozen
class Sound:
    """A sound transport, whose listener is `alter` of a sound one."""

    port: int = 0
    kind = "stream"
    alter = Altered

    @property
    def url(self):
        return f"tcp://127.0.0.1:{self.port}"

    def open(self):
        return type(self).alter(TCP("127.0.0.1", self.port).open())


class OddKind(Sound):
    kind = "streams"


class NoUrl(Sound):
    url = "9999"


class _NoSocket(Altered):
    def __getattr__(self, name):
        if name == "socket":
            raise AttributeError(name)
        return super().__getattr__(name)


class NoSocket(Sound):
    alter = _NoSocket

    def open(self):
        return _NoSocket(TCP("127.0.0.1", self.port).open())


class _NumberStays(Altered):
    def __init__(self, inner):
        super().__init__(inner)
        self.number = inner.fileno()

    def fileno(self):
        return self.number


class NumberStays(Sound):
    alter = _NumberStays


class _Leaky(Altered):
    def __init__(self, inner):
        super().__init__(inner)
        self.pair = [end.detach() for end in socket.socketpair()]


class Leaky(Sound):
    alter = _Leaky


class Once(Sound):
    opened = False

    def open(self):
        if Once.opened:
            Once.opened = False
            raise ListenError(self.url, OSError("once is enough"))
        Once.opened = True
        return super().open()


class BareError(Sound):
    def open(self):
        if self.port:
            raise OSError(98, "Address already in use")
        return super().open()


class _Blocks(Altered):
    def accept(self):
        self.inner.socket.setblocking(True)
        self.inner.socket.settimeout(30)
        return self.inner.socket.accept()


class Blocks(Sound):
    alter = _Blocks


class _TakesAByte(Altered):
    def accept(self):
        request, address = self.inner.accept()
        request.recv(1)
        return request, address


class TakesAByte(Sound):
    alter = _TakesAByte


class Mute(socket.socket):
    """Sends nothing."""

    def sendall(self, data):
        pass


class Endless(socket.socket):
    """Is not closed, and not even shut down."""

    kept = []

    def shutdown(self, how):
        pass

    def close(self):
        Endless.kept.append(self)


def _as(kind):
    class AcceptsAs(Altered):
        def accept(self):
            request, address = self.inner.accept()
            return kind(fileno=request.detach()), address

    return AcceptsAs


class MuteRequests(Sound):
    alter = _as(Mute)


class EndlessRequests(Sound):
    alter = _as(Endless)


class _Offended(Altered):
    offended = False

    def accept(self):
        if self.offended:
            raise BlockingIOError
        request, address = self.inner.accept()
        with contextlib.suppress(BlockingIOError):
            if request.recv(6, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"hello" and _has_ended(request):
                self.offended = True
        return request, address


def _has_ended(request):
    data = request.recv(5)
    with contextlib.suppress(BlockingIOError):
        return request.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"" and data == b"hello"
    return False


class Offended(Sound):
    alter = _Offended


class _Deaf(Altered):
    accepted = 0

    def accept(self):
        request, address = self.inner.accept()
        self.accepted += 1
        return request, (address, self.accepted)[0]


MUTANTS = {
    "test_kind": OddKind,
    "test_url": NoUrl,
    "test_open": NoSocket,
    "test_close": NumberStays,
    "test_leaves_nothing": Leaky,
    "test_opens_again": Once,
    "test_taken": BareError,
    "test_accept_never_blocks": Blocks,
    "test_accept": TakesAByte,
    "test_reply": MuteRequests,
    "test_end_of_stream": EndlessRequests,
    "test_client_gone": Offended,
}
