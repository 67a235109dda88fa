"""Messages in, messages out: framed on connections however they are cut, whole in datagrams."""

import contextlib
import errno
import logging
import pickle
import socket
import socketserver
import struct
import threading

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketkit import TCP, UDP, Server, Sync, Threads, UnixDatagram
from socketkit.dispatchers.adaptive import Adaptive
from socketkit.dispatchers.pool import Pool
from socketkit.handlers.base import StreamRequestHandler
from socketkit.handlers.messages import MessageHandler, MessageTooLargeError
from socketkit.seams.messages import answer, answered_by, replies_to_messages, reply_of
from socketkit.testing.clients import ask, talk

ANYWHERE = TCP("127.0.0.1", 0)
PARKING = [Pool(2), Adaptive()]
DISPATCHERS = [Sync(), Threads(), *PARKING]


def named(value):
    return type(value).__name__


class Upper(MessageHandler):
    max_message = 1000

    def reply(self, message, client_address):
        return message.upper()


class Lengths(Upper):
    framing = "length"


class Some(MessageHandler):
    """Answers only what begins with a question mark."""

    def reply(self, message, client_address):
        return message[1:] if message[:1] == b"?" else None


def framed(kind, message):
    return message + b"\n" if kind.framing == "line" else struct.pack("!I", len(message)) + message


class Opened:
    """A handler on one end of a connection that is driven step by step, as a dispatcher that parks does."""

    def __init__(self, kind):
        self.client, self.request = socket.socketpair()
        self.handler = kind.__new__(kind)
        self.handler.request, self.handler.client_address, self.handler.server = self.request, "peer", None
        self.handler.setup()

    def feed(self, data):
        """Send the data and let the handler take it."""
        self.client.sendall(data)
        while self.has_more():
            self.handler.handle_one_request()

    def has_more(self):
        self.request.setblocking(False)
        try:
            return bool(self.handler.rfile.peek(1))
        finally:
            self.request.setblocking(True)

    def replies(self):
        self.client.setblocking(False)
        try:
            return self.client.recv(1_000_000)
        except BlockingIOError:
            return b""
        finally:
            self.client.setblocking(True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.handler.finish()
        self.request.close()
        self.client.close()


# --- framing ----------------------------------------------------------------------------------------------------------


messages = st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", [Upper, Lengths], ids=lambda kind: kind.framing)
@settings(deadline=None, max_examples=40)
@given(messages=messages)
def test_messages_arrive_whole_wherever_their_bytes_are_split(kind, messages):
    wire = b"".join(framed(kind, message) for message in messages)
    expected = b"".join(framed(kind, message.upper()) for message in messages)
    for split in range(len(wire) + 1):
        with Opened(kind) as opened:
            opened.feed(wire[:split])
            opened.feed(wire[split:])
            assert opened.replies() == expected


@pytest.mark.parametrize("kind", [Upper, Lengths], ids=lambda kind: kind.framing)
def test_messages_arrive_whole_byte_by_byte(kind):
    with Opened(kind) as opened:
        wire = framed(kind, b"hello") + framed(kind, b"") + framed(kind, b"\r\0\xff")
        for number in range(len(wire)):
            opened.feed(wire[number : number + 1])
        assert opened.replies() == framed(kind, b"HELLO") + framed(kind, b"") + framed(kind, b"\r\0\xff")


def test_a_line_is_all_before_its_newline():
    class Shown(MessageHandler):
        def reply(self, message, client_address):
            return repr(message).encode()

    with Opened(Shown) as opened:
        opened.feed(b"a\r\n\n b \n")
        assert opened.replies() == b"b'a\\r'\nb''\nb' b '\n"


def test_a_length_is_big_endian_in_four_bytes():
    with Opened(Lengths) as opened:
        opened.feed(b"\0\0\1\0" + b"x" * 256)
        assert opened.replies() == b"\0\0\1\0" + b"X" * 256


def test_none_is_no_reply_and_nothing_is_an_empty_one():
    with Opened(Some) as opened:
        opened.feed(b"no\n?\n?yes\n")
        assert opened.replies() == b"\nyes\n"


def test_a_framing_that_is_not_known_is_refused_where_it_is_written():
    with pytest.raises(TypeError, match=r"Odd\.framing must be 'line' or 'length', not 'netstring'"):
        type("Odd", (MessageHandler,), {"framing": "netstring"})


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [0, 1, 500, 999, 1000])
def test_a_line_may_have_as_many_bytes_as_the_limit_and_no_more(split):
    with Opened(Upper) as opened:
        opened.feed(b"x" * split)
        opened.feed(b"x" * (1000 - split) + b"\n")
        assert opened.replies() == b"X" * 1000 + b"\n"
    with Opened(Upper) as opened:
        opened.feed(b"x" * split)
        with pytest.raises(MessageTooLargeError, match="it has more than 1000 bytes"):
            opened.feed(b"x" * (1001 - split) + b"\n")
        assert opened.replies() == b""


def test_a_line_is_too_long_before_its_end_is_there():
    with Opened(Upper) as opened:
        opened.feed(b"x" * 1000)
        with pytest.raises(MessageTooLargeError):
            opened.feed(b"x")


def test_a_length_may_be_the_limit_and_no_more():
    with Opened(Lengths) as opened:
        opened.feed(b"\0\0\3\xe8")
        opened.feed(b"x" * 1000)
        assert opened.replies() == b"\0\0\3\xe8" + b"X" * 1000
    with Opened(Lengths) as opened:
        opened.feed(b"\0\0\3")
        with pytest.raises(MessageTooLargeError):
            opened.feed(b"\xe9")  # nothing of the message itself has come


def test_no_more_is_kept_than_the_limit():
    class Large(Upper):
        max_message = 3_000_000

    with Opened(Large) as opened:
        for _ in range(300):
            opened.feed(b"x" * 10_000)
        assert len(opened.handler._frames._partial) == 3_000_000
        with pytest.raises(MessageTooLargeError):
            opened.feed(b"x")
        assert len(opened.handler._frames._partial) == 3_000_000


@pytest.mark.parametrize("dispatcher", DISPATCHERS, ids=named)
def test_a_message_that_is_too_large_fails_and_closes_its_connection(dispatcher, caplog):
    caplog.set_level(logging.CRITICAL)
    with Server(ANYWHERE, Upper, dispatcher=dispatcher).start() as server:
        with socket.create_connection(server.addresses[0], timeout=10) as client:
            client.sendall(b"fine\n")
            assert client.recv(100) == b"FINE\n"
            client.sendall(b"x" * 1001)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(100) == b""
        assert talk(server.addresses[0], b"next\n") == b"NEXT\n"
    assert server.stats().outcomes == {"failed": 1, "finished": 1}


# --- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", DISPATCHERS, ids=named)
@pytest.mark.parametrize("kind", [Upper, Lengths], ids=lambda kind: kind.framing)
def test_messages_are_answered_under_every_dispatcher(dispatcher, kind):
    with Server(ANYWHERE, kind, dispatcher=dispatcher).start() as server:
        for _ in range(3):
            wire = b"".join(framed(kind, text) for text in (b"one", b"two", b"three"))
            assert talk(server.addresses[0], wire) == wire.upper()
    assert server.stats().outcomes == {"finished": 3}


@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.ThreadingTCPServer], ids=lambda kind: kind.__name__)
def test_messages_are_answered_under_the_standard_librarys_servers(kind):
    with kind(("127.0.0.1", 0), Upper) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert talk(server.server_address, b"one\ntwo\n") == b"ONE\nTWO\n"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("dispatcher", [Pool(1), Adaptive(1)], ids=named)
def test_an_incomplete_message_holds_no_thread(dispatcher):
    with Server(ANYWHERE, Upper, dispatcher=dispatcher).start() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(server.addresses[0], timeout=10)) for _ in range(5)]
        for part in (b"a", b"b", b"c"):
            for client in clients:
                client.sendall(part)
            assert talk(server.addresses[0], b"whole\n") == b"WHOLE\n"
        for client in clients:
            client.sendall(b"\n")
            assert client.recv(100) == b"ABC\n"


@pytest.mark.parametrize("dispatcher", DISPATCHERS, ids=named)
@pytest.mark.parametrize("kind", [Upper, Lengths], ids=lambda kind: kind.framing)
def test_a_peer_that_leaves_within_a_message_has_aborted(dispatcher, kind):
    with Server(ANYWHERE, kind, dispatcher=dispatcher).start() as server:
        wire = framed(kind, b"one")
        assert talk(server.addresses[0], wire + wire[:-1]) == wire.upper()
        assert talk(server.addresses[0], wire[:2]) == b""
    assert server.stats().outcomes == {"aborted": 2}


@pytest.mark.parametrize("reply", ["text", 1, [1]], ids=repr)
def test_a_reply_that_is_no_bytes_is_an_error_that_says_so(reply):
    class Odd(MessageHandler):
        def reply(self, message, client_address):
            return reply

    with Opened(Odd) as opened, pytest.raises(TypeError, match=f"Odd.reply must return bytes or None, not {type(reply).__name__}"):
        opened.feed(b"x\n")


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_a_reply_may_be_whatever_holds_bytes(kind):
    class Odd(MessageHandler):
        def reply(self, message, client_address):
            return kind(message)

    with Opened(Odd) as opened:
        opened.feed(b"x\n")
        assert opened.replies() == b"x\n"


def test_a_handler_without_a_reply_says_what_is_missing():
    with Opened(MessageHandler) as opened, pytest.raises(TypeError, match=r"MessageHandler must define reply\(message"):
        opened.feed(b"x\n")


# --- datagrams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", DISPATCHERS, ids=named)
def test_a_datagram_is_a_message_as_it_stands(dispatcher):
    with Server(UDP("127.0.0.1", 0), Lengths, dispatcher=dispatcher).start() as server:
        for text in (b"one\ntwo", b"", b"x" * 1000):
            assert ask(server.addresses[0], text) == text.upper()
    assert server.stats().outcomes == {"finished": 3}


def test_a_datagram_without_a_reply_gets_none():
    with Server(UDP("127.0.0.1", 0), Some, dispatcher=Sync()).start() as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect(server.addresses[0])
            client.send(b"quiet")
            client.send(b"?loud")
            assert client.recv(100) == b"loud"
    assert server.stats().outcomes == {"finished": 2}


def test_a_datagram_may_have_as_many_bytes_as_the_limit_and_no_more(caplog):
    with Server(UDP("127.0.0.1", 0), Upper, dispatcher=Sync()).start() as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect(server.addresses[0])
            client.send(b"x" * 1001)
            client.send(b"x" * 1000)
            assert client.recv(2000) == b"X" * 1000
    assert server.stats().outcomes == {"failed": 1, "finished": 1}
    assert "message too large: it has more than 1000 bytes" in caplog.text


def test_a_sender_without_an_address_gets_no_reply(tmp_path, caplog):
    with Server(UnixDatagram(str(tmp_path / "server")), Upper, dispatcher=Sync()).start() as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", str(tmp_path / "server"))
            while not server.stats().outcomes:
                pass
    assert server.stats().outcomes == {"failed": 1}
    assert f"[Errno {errno.EDESTADDRREQ}] the sender has no address to reply to" in caplog.text


def test_datagrams_are_answered_under_the_standard_librarys_server():
    with socketserver.UDPServer(("127.0.0.1", 0), Upper) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert ask(server.server_address, b"one") == b"ONE"
        finally:
            server.shutdown()
            thread.join()


# --- replies from elsewhere -------------------------------------------------------------------------------------------


def test_a_reply_can_come_from_elsewhere():
    asked = []

    def elsewhere(handler, message, client_address, request):
        asked.append((handler, message, client_address, request))
        return b"from elsewhere"

    with Opened(Upper) as opened:
        with answered_by(elsewhere):
            opened.feed(b"a\n")
        opened.feed(b"b\n")
        assert opened.replies() == b"from elsewhere\nB\n"
    assert asked == [(Upper, b"a", "peer", opened.request)]


class Words(StreamRequestHandler):
    """A handler of somebody's own that declares the trait: its replies come word by word."""

    replies_to_messages = True

    def handle(self):
        for word in self.rfile.readline().split():
            self.wfile.write(reply_of(self, word))

    def reply(self, message, client_address):
        return message.upper()


def test_replies_of_any_handler_with_the_trait_can_come_from_elsewhere():
    def elsewhere(handler, message, client_address, request):
        return answer(handler, message, client_address) + b"!"

    here, there = Server(ANYWHERE, Words, dispatcher=Sync()), Server(ANYWHERE, Words, dispatcher=Elsewhere(elsewhere))
    with here.start(), there.start():
        assert talk(here.addresses[0], b"a b\n") == b"AB"
        assert talk(there.addresses[0], b"a b\n") == b"A!B!"


@attrs.frozen
class Elsewhere:
    """A dispatcher that gets its replies from a function."""

    answer: object

    def start(self, work):
        return self._Live(self.answer, work)

    @attrs.define
    class _Live:
        answer: object
        work: object
        inline = True

        def dispatch(self, request, client_address):
            with answered_by(self.answer):
                self.work.run(request, client_address)

        def wait(self, timeout):
            return True

        def close(self):
            pass


def test_a_recipe_s_option_workers_may_be_none():
    @attrs.frozen
    class Counting(Elsewhere):
        workers: int | None = None

    with Server(ANYWHERE, Words, dispatcher=Counting(lambda *_: b"x")).start() as server:
        assert talk(server.addresses[0], b"a\n") == b"x"


def test_only_classes_with_the_trait_reply_to_messages():
    found = [replies_to_messages(each) for each in (Upper, Words, StreamRequestHandler, lambda *_: None, Upper.reply)]
    assert found == [True, True, False, False, False]


class UnpicklableError(Exception):
    def __init__(self, one, other):
        super().__init__(one)


class MuteError(UnpicklableError):
    def __str__(self):
        raise ZeroDivisionError


class Raising(MessageHandler):
    def reply(self, message, client_address):
        raise {b"plain": ValueError("plain"), b"un": UnpicklableError("told", 2), b"mute": MuteError("x", 2)}[message]


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [(b"plain", ValueError, "plain"), (b"un", RuntimeError, "UnpicklableError: told"), (b"mute", RuntimeError, "MuteError")],
)
def test_an_error_from_elsewhere_can_travel(message, kind, text):
    with pytest.raises(kind) as caught:
        answer(Raising, message, "peer")
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_what_is_too_large_can_travel():
    error = pickle.loads(pickle.dumps(MessageTooLargeError(5)))
    assert (error.limit, str(error)) == (5, "message too large: it has more than 5 bytes")
