"""Transports that break one promise each, and recipes that are none."""

import contextlib
import os
import select
import socket
import tempfile
from functools import partial
from typing import ClassVar

import attrs

from socketkit import TCP, UDP, Memory, UnixStream
from socketkit.errors import ListenError
from socketkit.transports._sockets import StreamListener


class Listener:
    """A sound listener, of which mutants replace a part."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


@attrs.frozen
class Sound:
    port: int = 0
    kind = "stream"
    Part = Listener

    @property
    def url(self):
        return f"tcp://127.0.0.1:{self.port}"

    @staticmethod
    def locate(text):
        host, _, port = text.partition(":")
        if host != "127.0.0.1" or not port.isdecimal():
            raise ValueError(f"{text!r} is not 127.0.0.1:PORT")
        return {"port": int(port)}

    def open(self):
        return self.Part(TCP("127.0.0.1", self.port).open())


class Twofold(Sound):
    """Listens at two addresses."""

    def open_all(self):
        one = self.open()
        try:
            return [one, TCP("127.0.0.2", one.address[1]).open()]
        except BaseException:
            one.close()
            raise


class Datagrams(Sound):
    kind = "datagram"

    def open(self):
        return self.Part(UDP("127.0.0.1", self.port).open())


class Inside(Sound):
    """Has no place."""

    @property
    def url(self):
        return Memory().url

    locate = None

    def open(self):
        return self.Part(Memory().open())


# --- recipes ----------------------------------------------------------------------------------------------------------


@attrs.define
class Changeable:
    port: int = 0


@attrs.frozen
class Holding(Sound):
    pipe: object = attrs.field(factory=os.pipe)


class Demanding(Sound):
    requires = frozenset({"teleportation"})


# --- what it is -------------------------------------------------------------------------------------------------------


class OddKind(Sound):
    kind = "streams"


class NoUrl(Sound):
    url = "127.0.0.1 9999"


class Misread(Sound):
    @staticmethod
    def locate(text):
        return {"port": 1}


class Trusting(Sound):
    @staticmethod
    def locate(text):
        return {"port": {"127.0.0.1:0": 0}[text]}


# --- opening and closing ----------------------------------------------------------------------------------------------


class NoSocket(Sound):
    class Part(Listener):
        def __getattr__(self, name):
            if name == "socket":
                raise AttributeError(name)
            return super().__getattr__(name)


class NumberStays(Sound):
    class Part(Listener):
        def __init__(self, inner):
            super().__init__(inner)
            self.number = inner.fileno()

        def fileno(self):
            return self.number


class Leaky(Sound):
    class Part(Listener):
        def __init__(self, inner):
            super().__init__(inner)
            os.pipe()


class PathStays(Sound):
    url = "unix:///tmp/socket"

    def open(self):
        return PathStays.Part(UnixStream(f"{tempfile.mkdtemp()}/socket").open())

    class Part(Listener):
        def close(self):
            self.inner.socket.close()


class Once(Sound):
    opened = False

    def open(self):
        if Once.opened:
            raise ListenError(None, self.url, "once is enough", "be content")
        Once.opened = True
        return super().open()


class BareError(Sound):
    def open(self):
        if self.port:
            raise OSError(98, "Address already in use")
        return super().open()


class AllAtOnce(Sound):
    class Part(Listener):
        every: ClassVar[list] = []

        def __init__(self, inner):
            super().__init__(inner)
            self.every.append(inner)

        def close(self):
            for each in self.every:
                each.close()


class HalfDeaf(Twofold):
    def open_all(self):
        one, other = super().open_all()
        return [one, Nothing.Part(other)]


class HalfOpen(Twofold):
    kept: ClassVar[list] = []

    def open_all(self):
        one = self.open()
        self.kept.append(one)
        return [one, TCP("127.0.0.2", one.address[1]).open()]


class DeafCopy(StreamListener):
    def accept(self):
        raise BlockingIOError


class CopiesDeafly(Sound):
    class Part(Listener):
        def copier(self):
            return partial(DeafCopy, url="tcp://127.0.0.1:0")


def copy_with_path(sock):
    return StreamListener(sock, "unix:///tmp/socket", on_close=partial(os.unlink, sock.getsockname()))


class CopiesThePath(Sound):
    url = "unix:///tmp/socket"

    def open(self):
        return CopiesThePath.Part(UnixStream(f"{tempfile.mkdtemp()}/socket").open())

    class Part(Listener):
        def copier(self):
            return copy_with_path


# --- taking requests --------------------------------------------------------------------------------------------------


class Nothing(Sound):
    class Part(Listener):
        def accept(self):
            raise BlockingIOError


class Blocks(Sound):
    class Part(Listener):
        def accept(self):
            select.select([self.inner], [], [], 5)
            return self.inner.accept()


class AlwaysReadable(Sound):
    class Part(Listener):
        def __init__(self, inner):
            super().__init__(inner)
            self.ends = socket.socketpair()
            self.ends[1].send(b"!")

        def fileno(self):
            return self.ends[0].fileno()


class Possessive(Sound):
    class Part(Listener):
        def accept(self):
            self.request, address = self.inner.accept()
            return self.request, address

        def close(self):
            self.inner.close()
            self.request.close()


class TakesAByte(Sound):
    class Part(Listener):
        def accept(self):
            request, address = self.inner.accept()
            request.recv(1)
            return request, address


class WrongSender(Sound):
    class Part(Listener):
        def accept(self):
            return self.inner.accept()[0], self.inner.address


class Impatient(Sound):
    class Part(Listener):
        def accept(self):
            request, address = self.inner.accept()
            request.setblocking(False)
            return request, address


class Cropping(Datagrams):
    class Part(Listener):
        def accept(self):
            (data, sock), address = self.inner.accept()
            return (data[:1000], sock), address


class Vague(Datagrams):
    class Part(Listener):
        dropped = "many"


class Hasty(Inside):
    class Part(Listener):
        def connect(self):
            client = self.inner.connect()
            client.setblocking(False)
            return client


class Altered(socket.socket):
    """Is made of another socket."""

    def __init__(self, inner):
        super().__init__(fileno=inner.detach())


class Mute(Sound):
    class Part(Listener):
        def accept(self):
            request, address = self.inner.accept()
            return Mute.Request(request), address

    class Request(Altered):
        def sendall(self, data):
            pass


class Endless(Sound):
    class Part(Listener):
        def accept(self):
            request, address = self.inner.accept()
            return Endless.Request(request), address

    class Request(Altered):
        kept: ClassVar[list] = []

        def shutdown(self, how):
            pass

        def close(self):
            self.kept.append(self)


class Offended(Sound):
    class Part(Listener):
        offended = False

        def accept(self):
            if self.offended:
                raise BlockingIOError
            request, address = self.inner.accept()
            ended = select.poll()
            ended.register(request, select.POLLRDHUP)
            self.offended = bool(ended.poll(0))
            return request, address


class OneShot(Sound):
    """Its listener closes itself after a request."""

    class Part(Listener):
        def accept(self):
            with contextlib.closing(self.inner):
                return self.inner.accept()


SOUND = (Sound, Twofold, Datagrams)
MUTANTS = {
    "test_recipe": (Changeable, "decorate the class with @attrs.frozen"),
    "test_holds_nothing": (Holding, "Holding as such holds: descriptors"),
    "test_requires": (Demanding, "requires names ['teleportation'], and the features are"),
    "test_kind": (OddKind, "kind is 'streams'"),
    "test_url": (NoUrl, "'127.0.0.1 9999' is not a URL; write NAME://PLACE"),
    "test_place": (Misread, "tcp://127.0.0.1:0 is read back as Misread(port=1), whose URL is tcp://127.0.0.1:1"),
    "test_locate": (Trusting, "raised KeyError (''), not ValueError"),
    "test_open": (NoSocket, "the listener has no attribute socket; without a listening socket it is None"),
    "test_close": (NumberStays, "so a loop would watch somebody else's descriptor"),
    "test_leaves_nothing": (Leaky, "after close() there is still: descriptors"),
    "test_leaves_no_path": (PathStays, "/socket is still there"),
    "test_opens_again": (Once, "once is enough"),
    "test_taken": (BareError, "open() raised OSError ([Errno 98] Address already in use); wrap it in ListenError"),
    "test_opened_twice": (AllAtOnce, "closing one of two listeners of one recipe has closed the other too"),
    "test_several": (HalfDeaf, "accept() raised BlockingIOError although a request waits"),
    "test_several_or_none": (HalfOpen, "open_all() raised ListenError and left open: descriptors"),
    "test_copier": (CopiesDeafly, "accept() raised BlockingIOError although a request waits"),
    "test_copier and leaves the path": (CopiesThePath, "after close() of a copy, /tmp/"),
    "test_accept_never_blocks": (Blocks, "accept() without a request had not returned after 1 s; it must not block"),
    "test_quiet": (AlwaysReadable, "readable without a request, so a loop would never sleep"),
    "test_owned": (Possessive, "after close() of the listener, a request of it raised OSError"),
    "test_accept": (TakesAByte, "only b'ello' of b'hello' arrived within 1 s"),
    "test_sender": (WrongSender, "accept() returned the address ('127.0.0.1', "),
    "test_request_waits": (Impatient, "raised BlockingIOError; make the request block"),
    "test_largest": (Cropping, "a datagram of 60000 bytes arrived with 1000; max_packet_size is 65535"),
    "test_dropped": (Vague, "dropped is 'many'"),
    "test_connect": (Hasty, "the socket that connect() returned does not block"),
    "test_reply": (Mute, "only b'' of b'welcome' arrived within 1 s"),
    "test_end_of_stream": (Endless, "after the request was shut down and closed, the client still waits for the end"),
    "test_client_gone": (Offended, "accept() raised BlockingIOError although a request waits"),
    "test_served": (OneShot, "a client cannot connect to a server on it: "),
}
