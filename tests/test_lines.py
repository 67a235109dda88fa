"""The bound of a line: whoever sends one without an end is given up, and no more of it is kept than the bound."""

import contextlib
import io
import socket

import pytest

from socketkit import TCP, ConversationHandler, Limits, Server, StreamRequestHandler, TCPServer
from socketkit.errors import LineTooLongError
from socketkit.handlers.files import SocketReader, open_reader
from socketkit.testing.clients import talk

ANYWHERE = TCP("127.0.0.1", 0)


class Endless(io.RawIOBase):
    """Delivers text, and then what never is the end of a line; counts what was taken."""

    def __init__(self, text=b""):
        self.text, self.taken = text, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        data = (self.text + bytes(len(buffer)))[: len(buffer)]
        self.text = self.text[len(data) :]
        buffer[:] = data
        self.taken += len(data)
        return len(data)

    def close(self):
        pass


class Connection:
    """Has a file."""

    def __init__(self, raw):
        self.raw = raw

    def makefile(self, _mode, size):
        return self.raw if size == 0 else io.BufferedReader(self.raw)


def opened(text=b"", max_line=1000, size=-1):
    return open_reader(Connection(Endless(text)), size, max_line)


@pytest.mark.parametrize("read", [lambda file: file.readline(), lambda file: file.readline(-1), lambda file: file.readline(None), next])
def test_a_line_without_an_end_is_given_up_at_its_bound(read):
    file = opened(b"short\n")
    assert read(file) == b"short\n"
    with pytest.raises(LineTooLongError, match="more than 1000 bytes"):
        read(file)
    assert file.raw.taken <= 1000 + 2 * io.DEFAULT_BUFFER_SIZE


@pytest.mark.parametrize("size", [-1, 1, 16])
def test_a_line_may_be_as_long_as_the_bound_and_its_end_is_part_of_it(size):
    for length, fits in ((999, True), (1000, True), (1001, False)):
        file = opened(b"x" * (length - 1) + b"\n", size=size)
        if fits:
            assert len(file.readline()) == length
        else:
            with pytest.raises(LineTooLongError):
                file.readline()


def test_who_says_how_many_bytes_gets_them():
    assert len(opened().readline(5000)) == 5000
    assert len(opened().read(5000)) == 5000
    assert opened(b"ab").readline(0) == b""


def test_without_a_bound_or_a_buffer_the_file_is_the_usual_one():
    assert type(opened(max_line=None)) is io.BufferedReader
    assert type(opened(size=0)) is Endless


@pytest.fixture(params=["ours", "the usual one"])
def file_and_peer(request):
    """Return a connection, its readable file and its peer."""
    one, other = socket.socketpair()
    with one, other, open_reader(one, -1, 10 if request.param == "ours" else None) as file:
        yield one, file, other


def test_a_file_that_has_timed_out_reads_no_more(file_and_peer):
    connection, file, peer = file_and_peer
    connection.settimeout(0.01)
    with pytest.raises(TimeoutError):
        file.readline()
    peer.sendall(b"late\n")
    with pytest.raises(OSError, match="cannot read from timed out object"):
        file.readline()


def test_a_file_of_a_connection_that_does_not_wait_gives_what_is_there(file_and_peer):
    connection, file, peer = file_and_peer
    connection.setblocking(False)
    assert file.read1() == b""
    assert file.raw.read(1) is None
    peer.sendall(b"some")
    assert file.read(10) == b"some"


def test_a_file_says_which_descriptor_it_reads(file_and_peer):
    connection, file, _peer = file_and_peer
    assert (file.fileno(), file.name, file.mode, file.readable(), file.writable()) == (*[connection.fileno()] * 2, "rb", True, False)


def test_a_connection_of_another_kind_has_its_own_file():
    own = io.BytesIO(b"line\n")
    assert open_reader(Connection(own), -1, 10) is own


@pytest.mark.parametrize("dispatcher", ["adaptive", "pool:2", "thread"])
@pytest.mark.parametrize("base", [StreamRequestHandler, ConversationHandler])
def test_it_fails_its_own_request_and_says_why(dispatcher, base):
    errors = []

    class Repeats(base):
        def handle_one_request(self):
            self.wfile.write(self.rfile.readline())

        if base is StreamRequestHandler:

            def handle(self):
                self.handle_one_request()

    class Watcher:
        def request_failed(self, server, client_address, error):
            errors.append(error)

    with Server(ANYWHERE, Repeats, dispatcher=dispatcher, limits=Limits(line=100), observers=[Watcher()]).start() as server:
        assert talk(server.addresses[0], bytes(5000)) == b""
        assert talk(server.addresses[0], b"x" * 99 + b"\n") == b"x" * 99 + b"\n"
    assert [(type(error), error.limit) for error in errors] == [(LineTooLongError, 100)]
    assert server.stats().outcomes == {"failed": 1, "finished": 1}


def test_lines_that_come_together_are_a_conversation_as_ever():
    class Counts(ConversationHandler):
        def handle_one_request(self):
            self.wfile.write(b"%d\n" % len(self.rfile.readline()))

    with Server(ANYWHERE, Counts).start() as server, socket.create_connection(server.addresses[0], timeout=10) as client:
        client.sendall(b"x\nxx\nxxx\n")
        assert client.makefile("rb").read(6) == b"2\n3\n4\n", "none waits in the buffer for a byte that does not come"


def test_composed_servers_have_a_bound_and_classic_ones_none():
    kinds = []

    class Tells(StreamRequestHandler):
        def handle(self):
            kinds.append((type(self.rfile), getattr(self.rfile, "max_line", None)))

    for limits in (None, Limits(line=None)):
        with Server(ANYWHERE, Tells, limits=limits).start() as server, contextlib.suppress(OSError):
            talk(server.addresses[0], b"x")  # the handler may close before it has all been sent
    with TCPServer(("127.0.0.1", 0), Tells) as server, socket.create_connection(server.server_address, timeout=10):
        server.handle_request()
    assert kinds == [(SocketReader, 65536), (io.BufferedReader, None), (io.BufferedReader, None)]
