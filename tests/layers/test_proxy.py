"""The layer `proxy` in servers: who is trusted, what handlers see, what ends a connection, and what cannot be composed."""

import contextlib
import logging
import pickle
import socket
from typing import ClassVar

import attrs
import pytest

from helpers.dispatchers import EVERY
from helpers.green import GREEN
from helpers.support import TESTS
from layers.proxy_headers import AUTHORITY, SIGNATURE, block, encode, field, v4
from socketkit import (
    TCP,
    UDP,
    Asyncio,
    AsyncStreamRequestHandler,
    Layered,
    Limits,
    ProxiedAddress,
    ProxyHeader,
    ProxyProtocol,
    Server,
    StreamRequestHandler,
    UnixStream,
)
from socketkit.composition import config
from socketkit.errors import ConfigError, IncompatibleError
from socketkit.layers.proxy import proxied
from socketkit.testing.clients import address, talk
from socketkit.testing.programs import Program, with_path

LOCALHOST = ProxyProtocol(["127.0.0.1/32"])
BLOCKING = [name for name in EVERY if name != "asyncio"]
LINE = b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\r\n"
V2 = block(1, 0x11, v4() + field(AUTHORITY, b"a.example"))
HEADERS = {"version 1": LINE, "version 2": V2}


def anywhere(layer=LOCALHOST):
    return Layered(TCP("127.0.0.1", 0), layer)


class Tell(StreamRequestHandler):
    def handle(self):
        self.wfile.write(repr(self.client_address).encode() + b" " + self.rfile.read())


class Keep(StreamRequestHandler):
    """Keeps each client's address in the server."""

    def handle(self):
        self.server.seen.append(self.client_address)
        self.wfile.write(b"seen")


def seen(layer, data, transport=None):
    """Serve one client that sends the data; return its address as the handler has seen it, and the address that it has."""
    with Server(Layered(transport or TCP("127.0.0.1", 0), layer), Keep, dispatcher="thread") as server:
        server.seen = []
        server.start()
        with connect(server) as client:
            client.sendall(data)
            assert client.recv(10) == b"seen"
            own = client.getsockname()
    return server.seen[0], own


def connect(server):
    where = server.addresses[0]
    client = socket.socket(socket.AF_UNIX if isinstance(where, str | bytes) else socket.AF_INET)
    client.settimeout(10)
    client.connect(where)
    return client


def answer(server, data):
    """Return what the server answers; nothing if it ends the connection, which the kernel may report as a reset or ENOTCONN."""
    try:
        return talk(server.addresses[0], data)
    except TimeoutError:
        raise
    except OSError:
        return b""


def outcomes(server):
    server.stop()
    return server.stats().outcomes


# --- what handlers see ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("dispatcher", [*BLOCKING, GREEN])
def test_a_blocking_handler_sees_the_address_and_all_that_follows_the_header(dispatcher, header):
    command = ("-m", "socketkit", "serve", "handlers:Tell", "--listen", "tcp+proxy://127.0.0.1:0?proxy.trusted=127.0.0.1/32")
    with Program.python(*command, "--dispatcher", dispatcher, env=with_path(TESTS / "layers")) as program:
        [url] = program.serving()
        reply = talk(address(url), header + b"line\n").decode()
        assert reply.startswith("('192.0.2.7', 50000) via ('127.0.0.1', ")
        assert f"version={1 if header == LINE else 2}" in reply
        assert program.stop() == 0, program.output
    assert "Traceback" not in program.output


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_an_asynchronous_handler_sees_the_address_and_all_that_follows_the_header(header):
    class Coroutine(AsyncStreamRequestHandler):
        async def handle(self):
            self.writer.write(repr(self.client_address).encode() + b" " + await self.reader.read())

    with Server(anywhere(), Coroutine, dispatcher=Asyncio()).start() as server:
        assert talk(server.addresses[0], header + b"text") == b"('192.0.2.7', 50000) text"


def test_the_address_is_a_tuple_that_knows_the_proxy_and_its_header():
    client, own = seen(LOCALHOST, V2)
    assert client == ("192.0.2.7", 50000)
    assert isinstance(client, tuple)
    assert isinstance(client, ProxiedAddress)
    assert (client.via, str(client)) == (own, "('192.0.2.7', 50000)")
    assert client.proxy == ProxyHeader(
        version=2, kind="stream", source=("192.0.2.7", 50000), destination=("192.0.2.1", 443), authority="a.example"
    )


@pytest.mark.parametrize(
    ("header", "plain"),
    [
        (LINE, ("192.0.2.7", 50000)),
        (b"PROXY TCP6 2001:DB8::7 ::1 50000 443\r\n", ("2001:db8::7", 50000, 0, 0)),
        (block(1, 0x31, b"/run/a".ljust(108, b"\0") + bytes(108)), "/run/a"),
        (block(1, 0x31, bytes(216)), ""),
        (block(1, 0x31, b"\0name".ljust(108, b"\0") + bytes(108)), b"\0name"),
    ],
)
def test_each_kind_of_address_equals_the_plain_one_also_after_pickling(header, plain):
    client, own = seen(LOCALHOST, header)
    for each in (client, pickle.loads(pickle.dumps(client))):
        assert each == plain
        assert hash(each) == hash(plain)
        assert (each.via, each.proxy) == (own, client.proxy)


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN rest\r\n", block(0, 0), block(0, 0x11, v4()), block(1, 0), block(1, 0x10, v4())])
def test_a_header_without_an_address_keeps_the_peers_own(header):
    client, own = seen(LOCALHOST, header)
    assert client == client.via == own
    assert client.proxy.source is None


def test_the_command_says_whether_the_proxy_speaks_for_itself():
    commands = [seen(LOCALHOST, header)[0].proxy.command for header in (block(0, 0), block(1, 0), LINE)]
    assert commands == ["local", "proxy", "proxy"]


def test_a_transport_that_knows_no_address_of_a_client_gives_an_empty_one():
    assert proxied(None, None) == ""


# --- who is trusted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted", "peer", "answer"),
    [
        (["10.0.0.0/8"], ("10.1.2.3", 1), True),
        (["10.0.0.0/8"], ("11.1.2.3", 1), False),
        (["10.0.0.0/8"], ("::ffff:10.1.2.3", 1, 0, 0), True),  # a listener for both families
        (["2001:db8::/32", "192.0.2.7"], ("2001:db8::1", 1, 0, 0), True),
        (["2001:db8::/32", "192.0.2.7"], ("192.0.2.7", 1), True),
        (["2001:db8::/32", "192.0.2.7"], ("192.0.2.8", 1), False),
        (["0.0.0.0/0"], "", False),
        (["unix"], "", True),
        (["unix"], b"\0name", True),
        (["unix"], None, True),
        (["unix"], ("127.0.0.1", 1), False),
        (["unix"], (2, 5000), False),  # neither: a virtual machine's, for example
    ],
)
def test_only_the_networks_that_are_listed_are_trusted(trusted, peer, answer):
    assert ProxyProtocol(trusted).trusts(peer) is answer


@pytest.mark.parametrize("data", [LINE, V2, b"hello"])
def test_a_peer_that_is_not_trusted_is_refused_whatever_it_sends(data, caplog):
    caplog.set_level(logging.DEBUG, "socketkit")
    with Server(anywhere(ProxyProtocol(["10.0.0.0/8"])), Tell).start() as server:
        assert answer(server, data) == b""
        assert outcomes(server) == {"failed": 1}
    assert "proxy: not from a trusted network" in caplog.text


@pytest.mark.parametrize("data", [LINE, V2, b"hello"])
def test_with_plain_an_untrusted_peer_is_served_and_none_of_its_bytes_is_a_header(data):
    with Server(anywhere(ProxyProtocol(["10.0.0.0/8"], untrusted="plain")), Tell).start() as server:
        reply = answer(server, data)
    assert reply.startswith(b"('127.0.0.1', ")
    assert reply.endswith(b" " + data)


def test_with_plain_the_address_has_no_header_and_is_its_own_way():
    client, own = seen(ProxyProtocol(["10.0.0.0/8"], untrusted="plain"), LINE)
    assert (client, client.via, client.proxy) == (own, own, None)


def test_with_plain_a_trusted_peer_still_has_to_send_a_header():
    with Server(anywhere(attrs.evolve(LOCALHOST, untrusted="plain")), Tell).start() as server:
        assert answer(server, b"hello") == b""
        assert answer(server, LINE + b"hello") == b"('192.0.2.7', 50000) hello"


@pytest.mark.parametrize("trusted", ["unix", "127.0.0.1/32"])
def test_a_peer_on_a_unix_socket_is_trusted_if_unix_is_listed(trusted, tmp_path):
    with Server(Layered(UnixStream(str(tmp_path / "s")), ProxyProtocol([trusted])), Tell).start() as server:
        reply = answer(server, LINE + b"hello")
    assert reply == (b"('192.0.2.7', 50000) hello" if trusted == "unix" else b"")


def test_the_address_of_a_peer_on_a_unix_socket_is_kept_as_it_is(tmp_path):
    client, own = seen(ProxyProtocol(["unix"]), block(0, 0), UnixStream(str(tmp_path / "s")))
    assert (client, client.via, own) == ("", "", "")
    assert client.proxy == ProxyHeader(version=2, command="local")


@pytest.mark.parametrize(("versions", "served"), [((1,), LINE), ((2,), V2)])
def test_only_the_versions_that_are_listed_are_served(versions, served):
    with Server(anywhere(attrs.evolve(LOCALHOST, versions=versions)), Tell).start() as server:
        for header in HEADERS.values():
            assert answer(server, header) == (b"('192.0.2.7', 50000) " if header == served else b"")


# --- the bytes on the wire --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_in_two_pieces_is_read_and_nothing_behind_it(header):
    for size in range(len(header) + 1):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(0)
            arrival = LOCALHOST.begin(ours, ("127.0.0.1", 5))
            assert arrival.go_on() is None
            theirs.sendall(header[:size])
            first = arrival.go_on()
            assert (first is None) == (size < len(header))
            if first is None:
                assert arrival.go_on() is None  # what has arrived is read, so a poller has nothing to report until more comes
                with pytest.raises(BlockingIOError):
                    ours.recv(1, socket.MSG_PEEK)
            theirs.sendall(header[size:] + LINE)
            assert (first or arrival.go_on()) == ("192.0.2.7", 50000)
            assert ours.recv(1000) == LINE
            assert (arrival.request, arrival.sends) == (ours, False)


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_in_one_piece_takes_two_calls(header):
    calls = []

    class Counting(socket.socket):
        def recv(self, *arguments):
            calls.append(arguments)
            return super().recv(*arguments)

    ours, theirs = socket.socketpair()
    with theirs, Counting(fileno=ours.detach()) as counting:
        theirs.sendall(header + b"behind")
        arrival = LOCALHOST.begin(counting, ("127.0.0.1", 5))
        assert (arrival.go_on(), arrival.request) == (("192.0.2.7", 50000), counting)
    assert calls == [(4096, socket.MSG_PEEK), (len(header),)]


def test_a_header_may_come_byte_by_byte():
    with Server(anywhere(), Tell).start() as server, connect(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in V2:
            client.sendall(bytes((byte,)))
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b"('192.0.2.7', 50000) hello"


HOSTILE = {
    "no header": (b"GET / HTTP/1.0\r\n\r\n", "proxy: no header"),
    "an endless line": (b"PROXY UNKNOWN " + b"x" * 100_000, "proxy: the header does not end within 107 bytes"),
    "a length of 65535": (block(1, 0x11, length=0xFFFF), "proxy: a header of 65551 bytes is longer than 4096"),
    "a field that runs over": (block(1, 0x11, v4() + b"\1\xff\xff"), "proxy: field 0x01 runs past the end"),
    "a field that is cut off": (block(1, 0x11, v4() + b"\1"), "proxy: a field of the header is cut off"),
    "a wrong checksum": (block(1, 0x11, v4() + field(3, b"crc?")), "proxy: the header's checksum is wrong"),
    "two versions": (SIGNATURE + LINE, "proxy: unknown version or command 0x50"),
}


@pytest.mark.parametrize(("data", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_ends_its_connection_only_and_no_handler_sees_it(data, reason, caplog):
    caplog.set_level(logging.DEBUG, "socketkit")
    with Server(anywhere(), Tell).start() as server:
        with connect(server) as client, contextlib.suppress(ConnectionError):  # the kernel resets it: not all was read
            client.sendall(data)
            assert client.recv(100) == b""
        assert answer(server, LINE) == b"('192.0.2.7', 50000) "
        assert outcomes(server) == {"failed": 1, "finished": 1}
    assert reason in caplog.text
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


STARTS = {"version 1": LINE[:-1], "the signature": V2[:12], "the fields": V2[:-1]}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_client_that_leaves_in_the_middle_of_its_header_has_aborted(start, caplog):
    caplog.set_level(logging.DEBUG, "socketkit")
    with Server(anywhere(), Tell).start() as server:
        assert answer(server, start) == b""
        assert outcomes(server) == {"aborted": 1}
    assert "proxy: the peer has closed before its header was complete" in caplog.text


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_client_that_stops_in_the_middle_of_its_header_is_cut_at_the_deadline(start):
    with Server(anywhere(), Tell, dispatcher="thread", limits=Limits(request=0.3)).start() as server, connect(server) as client:
        client.sendall(start)
        assert client.recv(100) == b""
        assert answer(server, LINE) == b"('192.0.2.7', 50000) "
        assert outcomes(server) == {"timed out": 1, "finished": 1}


def test_the_bound_of_a_header_can_be_raised():
    long = encode(
        ProxyHeader(version=2, kind="stream", source=("192.0.2.7", 1), destination=("192.0.2.1", 1), others=((0xE0, bytes(9000)),))
    )
    layers = (LOCALHOST, attrs.evolve(LOCALHOST, max_header=10_000))
    replies = []
    for layer in layers:
        with Server(anywhere(layer), Tell).start() as server:
            replies.append(answer(server, long))
    assert replies == [b"", b"('192.0.2.7', 1) "]


# --- compositions -----------------------------------------------------------------------------------------------------


def test_a_url_and_a_table_describe_the_same_layer():
    url = "tcp+proxy://127.0.0.1:0?proxy.trusted=10.0.0.0/8,unix&proxy.untrusted=plain&proxy.versions=2&proxy.max_header=536"
    table = {"use": "proxy", "trusted": ["10.0.0.0/8", "unix"], "untrusted": "plain", "versions": [2], "max_header": 536}
    layer = ProxyProtocol(["10.0.0.0/8", "unix"], untrusted="plain", versions=(2,), max_header=536)
    assert config.transport(url) == config.transport({"use": "tcp", "host": "127.0.0.1", "port": 0, "layers": [table]}) == anywhere(layer)


@pytest.mark.parametrize("url", ["tcp+proxy://127.0.0.1:0", "tcp+proxy://127.0.0.1:0?proxy.trusted="])
def test_a_layer_that_trusts_nobody_is_refused_with_the_reason_and_what_to_write(url):
    with pytest.raises(ConfigError) as caught:
        config.transport(url)
    sentence = str(caught.value)
    assert "trusted must list your proxies, because a header from anyone else could claim any address" in sentence
    assert "proxy.trusted=10.0.0.0/8" in sentence
    assert "unix for those on a Unix socket" in sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"trusted": "10.0.0.0/8"}, "trusted must be a list of networks, such as 10.0.0.0/8, or the word unix, not '10.0.0.0/8'"),
        ({"trusted": ["10.0.0.1/8"]}, "trusted must be a list of networks, .* has host bits set"),
        ({"trusted": ["proxy.example"]}, "trusted must be a list of networks, .* does not appear to be"),
        ({"trusted": ["unix"], "untrusted": "trust"}, "'untrusted' must be in"),
        ({"trusted": ["unix"], "versions": []}, r"versions must be a list of 1, 2 or both, not \(\)"),
        ({"trusted": ["unix"], "versions": [1, 3]}, "versions must be a list of 1, 2 or both"),
        ({"trusted": ["unix"], "versions": 2}, "versions must be a list of 1, 2 or both, not 2"),
        ({"trusted": ["unix"], "max_header": 231}, "max_header must be a whole number from 232 to 65551, not 231"),
        ({"trusted": ["unix"], "max_header": 65552}, "max_header must be a whole number from 232 to 65551, not 65552"),
    ],
)
def test_a_wrong_option_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ProxyProtocol(**options)


def test_datagrams_are_refused():
    with pytest.raises(ValueError, match="carries datagrams, and layers need a stream"):
        Layered(UDP("127.0.0.1", 0), LOCALHOST)


@attrs.frozen
class Sealed:
    """Stands for a layer such as TLS."""

    replaces_socket: ClassVar[bool] = True

    def wrap(self, request, client_address):
        return request, client_address


def test_behind_a_layer_that_replaces_the_socket_it_is_refused_with_the_remedy():
    with pytest.raises(IncompatibleError, match="works only on the socket, which Sealed replaces; put ProxyProtocol before Sealed"):
        Server(Layered(TCP("127.0.0.1", 0), Sealed(), LOCALHOST), Tell)


def test_before_a_layer_that_replaces_the_socket_it_is_served():
    with Server(Layered(TCP("127.0.0.1", 0), LOCALHOST, Sealed()), Tell).start() as server:
        assert answer(server, LINE + b"hello") == b"('192.0.2.7', 50000) hello"
