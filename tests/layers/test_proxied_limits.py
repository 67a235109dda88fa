"""Limits for peers behind a proxy: they see the client that a header names, and not the proxy."""

import contextlib
import socket
import ssl
import threading

import pytest

from helpers.support import wait_until
from socketkit import (
    TCP,
    TLS,
    Adaptive,
    Asyncio,
    AsyncStreamRequestHandler,
    Executor,
    Forks,
    Graceful,
    Layered,
    Limits,
    Pool,
    Prefork,
    ProxyProtocol,
    Server,
    StreamRequestHandler,
    Sync,
    Threads,
)
from socketkit.composition import config
from socketkit.errors import ConfigError, IncompatibleError
from socketkit.testing.certificates import certificate

LOCALHOST = ProxyProtocol(["127.0.0.1/32"])
PROXIED = Layered(TCP("127.0.0.1", 0), LOCALHOST)
CONCURRENT = [Threads(), Pool(8), Adaptive(), Executor(), Asyncio()]
ALL = [Sync(), Forks(), Prefork(1), Prefork(1, Pool(4)), *CONCURRENT]
NETWORK, FULL = "the client's network is not allowed", "max_per_peer is reached"


def header(host):
    return b"PROXY TCP4 %s 192.0.2.1 50000 443\r\n" % host.encode()


class Echo(StreamRequestHandler):
    """Repeats lines."""

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)


class AsyncEcho(AsyncStreamRequestHandler):
    """The same as a coroutine."""

    async def handle(self):
        async for line in self.reader:
            self.writer.write(line)


class Reasons:
    """Notes why requests were refused."""

    def __init__(self):
        self.noted = []

    def request_refused(self, server, client_address, reason):
        self.noted.append((client_address[0], reason))


@contextlib.contextmanager
def serving(dispatcher, handler=Echo, transport=PROXIED, **limits):
    reasons = Reasons()
    server = Server(transport, handler, dispatcher=dispatcher, lifecycle=Graceful(drain=5), limits=Limits(**limits), observers=[reasons])
    with server.start(), contextlib.ExitStack() as clients:

        def connect(data=b"", *, to=0, source="127.0.0.1"):
            client = clients.enter_context(socket.create_connection(server.addresses[to], 10, (source, 0)))
            client.sendall(data)
            return client

        yield server, connect, reasons.noted


def heard(client):
    """Return what the server says next; nothing once it has closed, or reset, the connection."""
    try:
        return client.recv(100)
    except ConnectionResetError:
        return b""


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", ALL, ids=repr)
def test_allow_and_deny_judge_the_client_in_the_header(dispatcher):
    limits = Limits(allow=["192.0.2.0/24"], deny=["192.0.2.66"], reply="go away\n")
    with serving(dispatcher, allow=limits.allow, deny=limits.deny, reply=limits.reply) as (server, connect, _):
        assert heard(connect(header("192.0.2.66") + b"x\n")) == b"go away\n"
        assert heard(connect(header("198.51.100.1") + b"x\n")) == b"go away\n"
        client = connect(header("192.0.2.7") + b"hello\n")
        client.shutdown(socket.SHUT_WR)  # closing would not do: a forked child has a copy
        assert heard(client) == b"hello\n"
        wait_until(lambda: server.stats().outcomes == {"finished": 1, "refused": 2})


def test_the_reason_is_told_with_the_client_that_was_named():
    with serving(Pool(2), deny=["192.0.2.66"]) as (_, connect, reasons):
        assert heard(connect(header("192.0.2.66") + b"x\n")) == b""
        wait_until(lambda: reasons == [("192.0.2.66", NETWORK)])


def test_a_proxy_that_names_nobody_is_judged_itself():
    with serving(Pool(2), allow=["192.0.2.0/24"], reply="go away\n") as (_, connect, reasons):
        assert heard(connect(b"PROXY UNKNOWN\r\nx\n")) == b"go away\n"
        wait_until(lambda: reasons == [("127.0.0.1", NETWORK)])


def test_a_peer_served_without_a_header_is_judged_itself():
    plain = Layered(TCP("127.0.0.1", 0), ProxyProtocol(["192.0.2.1/32"], untrusted="plain"))
    with serving(Pool(2), transport=plain, deny=["127.0.0.2"]) as (_, connect, reasons):
        assert heard(connect(b"x\n")) == b"x\n"
        assert heard(connect(b"x\n", source="127.0.0.2")) == b""
        wait_until(lambda: reasons == [("127.0.0.2", NETWORK)])


def test_networks_are_judged_for_asynchronous_handlers_too():
    with serving(Asyncio(), AsyncEcho, deny=["192.0.2.66"], reply="go away\n") as (_, connect, reasons):
        assert heard(connect(header("192.0.2.66") + b"x\n")) == b"go away\n"
        assert heard(connect(header("192.0.2.7") + b"hello\n")) == b"hello\n"
        assert reasons == [("192.0.2.66", NETWORK)]


# --- connections of one client -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", [*CONCURRENT, Prefork(1, Pool(4))], ids=repr)
def test_max_per_peer_counts_the_connections_of_each_client_behind_the_proxy(dispatcher):
    with serving(dispatcher, max_per_peer=2, reply="enough\n") as (server, connect, _):
        mine = [connect(header("192.0.2.7") + b"mine\n") for _ in range(2)]
        assert [heard(each) for each in mine] == [b"mine\n"] * 2
        assert heard(connect(header("192.0.2.7") + b"more\n")) == b"enough\n"
        assert heard(connect(header("192.0.2.8") + b"yours\n")) == b"yours\n"
        mine.pop().close()
        wait_until(lambda: server.stats().outcomes == {"finished": 1, "refused": 1})
        assert heard(connect(header("192.0.2.7") + b"again\n")) == b"again\n"


@pytest.mark.parametrize("dispatcher", CONCURRENT, ids=repr)
def test_of_clients_named_at_the_same_time_no_more_than_max_per_peer_are_served(dispatcher):
    count = 16
    ready = threading.Barrier(count)
    answers = []

    def ask(client):
        ready.wait(10)
        client.sendall(header("192.0.2.7") + b"x\n")
        answers.append(heard(client))

    with serving(dispatcher, max_per_peer=3, reply="enough\n") as (server, connect, reasons):
        threads = [threading.Thread(target=ask, args=(connect(),)) for _ in range(count)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(20)
        assert sorted(answers) == [b"enough\n"] * (count - 3) + [b"x\n"] * 3
        assert reasons == [("192.0.2.7", FULL)] * (count - 3)
        wait_until(lambda: server.stats().active == 3)


def test_a_connection_counts_for_nobody_until_its_client_is_named():
    direct = TCP("127.0.0.1", 0)
    with serving(Pool(8), transport=[PROXIED, direct], max_per_peer=1, reply="enough\n") as (server, connect, _):
        silent = [connect() for _ in range(5)]
        wait_until(lambda: server.stats().active == 5)
        assert heard(connect(b"x\n", to=1)) == b"x\n"  # the proxy's machine has clients of its own
        silent[0].sendall(header("127.0.0.1") + b"x\n")
        assert heard(silent[0]) == b"enough\n"
        silent[1].sendall(header("192.0.2.7") + b"x\n")
        assert heard(silent[1]) == b"x\n"


def test_a_client_behind_tls_is_turned_away_without_a_word():
    encrypted = Layered(TCP("127.0.0.1", 0), LOCALHOST, TLS(*certificate()))
    with serving(Pool(2), transport=encrypted, deny=["192.0.2.66"], reply="go away\n") as (_, connect, reasons):
        assert heard(connect(header("192.0.2.66"))) == b""
        assert reasons == [("192.0.2.66", NETWORK)]


def test_a_client_of_tls_gets_no_reply_that_it_could_not_read():
    with serving(Pool(2), transport=Layered(TCP("127.0.0.1", 0), TLS(*certificate())), deny=["127.0.0.2"], reply="go away\n") as server:
        _, connect, reasons = server
        assert heard(connect(source="127.0.0.2")) == b""
        assert reasons == [("127.0.0.2", NETWORK)]
        context = ssl._create_unverified_context()
        with context.wrap_socket(connect()) as client:
            client.sendall(b"x\n")
            assert client.recv(10) == b"x\n"


# --- compositions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", [Forks(), Prefork(2, Forks())], ids=repr)
def test_max_per_peer_is_refused_where_only_a_child_learns_who_the_client_is(dispatcher):
    with pytest.raises(IncompatibleError, match=r"only its children learn the client's address from ProxyProtocol; leave max_per_peer out"):
        Server(PROXIED, Echo, dispatcher=dispatcher, limits=Limits(max_per_peer=2))


def test_a_file_that_asks_for_that_is_refused_too():
    listen = "tcp+proxy://127.0.0.1:0?proxy.trusted=127.0.0.1/32"
    spec = {"listen": listen, "handler": Echo, "dispatcher": "fork", "limits": {"max_per_peer": 2}}
    with pytest.raises(ConfigError, match="max_per_peer"):
        config.composition(spec)
    config.composition({**spec, "limits": {"deny": ["192.0.2.66"]}})
