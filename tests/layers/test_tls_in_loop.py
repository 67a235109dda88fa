"""TLS for asynchronous handlers: the event loop shakes hands, and all promises of the layer hold as for blocking handlers."""

import asyncio
import contextlib
import importlib.util
import logging
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from typing import ClassVar

import attrs
import pytest

from helpers.support import python
from socketkit import TCP, TLS, AsyncStreamRequestHandler, Graceful, Layered, Limits, ProxyProtocol, Server
from socketkit.dispatchers._aio import new_loop
from socketkit.errors import IncompatibleError, UpgradeError
from socketkit.handlers.coroutines import AsyncRequestHandler
from socketkit.testing.certificates import authority, certificate

LATE = 20

if importlib.util.find_spec("uvloop") is not None:
    new_loop("uvloop").close()  # the first one opens a pipe for all the process


@pytest.fixture(params=["asyncio", "uvloop"])
def dispatcher(request):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip("uvloop is not installed")
    return f"asyncio:{request.param}"


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Fail a test in which the event loop has logged something."""
    caplog.set_level(logging.DEBUG, "socketkit")
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"] == []


class Upper(AsyncStreamRequestHandler):
    async def handle(self):
        while line := await self.reader.readline():
            self.writer.write(line.upper())
            await self.writer.drain()


def asynchronous(handle, **attributes):
    """Return a handler class with this `handle`."""
    return type("Handler", (AsyncStreamRequestHandler,), {"handle": handle, **attributes})


def encrypted(handler, dispatcher="asyncio", *before, limits=None, drain=5, transport=None, **options):
    cert, key = certificate()
    options = {"cert": cert, "key": key, **options} if "context" not in options else options
    return Server(
        Layered(transport or TCP("127.0.0.1", 0), *before, TLS(**options)),
        handler,
        dispatcher=dispatcher,
        lifecycle=Graceful(drain=drain),
        limits=limits or Limits(),
    )


def trusting(**settings):
    context = ssl.create_default_context(cafile=authority("Authority"))
    for setting, value in settings.items():
        setattr(context, setting, value)
    return context


def connect(server, context=None, name="localhost"):
    """Return a client that takes a cut for an error, and the end only with `close_notify`."""
    raw = socket.create_connection(server.addresses[0], timeout=LATE)
    return (context or trusting()).wrap_socket(raw, server_hostname=name, suppress_ragged_eofs=False)


def ended(client):
    return b"".join(iter(lambda: client.recv(65536), b""))


def until(condition):
    end = time.monotonic() + LATE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class Stepwise:
    """A client whose every byte the test sends itself."""

    def __init__(self, server):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = trusting().wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.raw = socket.create_connection(server.addresses[0], timeout=LATE)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.raw.close()

    def hello(self):
        """Return the first bytes to send."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    def run(self, step, send=None):
        """Take the step, and send and receive what it needs."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                (send or self.raw.sendall)(self.outgoing.read())
                received = self.raw.recv(10_000)
                assert received
                self.incoming.write(received)


# --- serving -----------------------------------------------------------------------------------------------------------


def test_an_asynchronous_handler_is_served_as_without_tls(dispatcher):
    with encrypted(Upper, dispatcher).start() as server, contextlib.ExitStack() as stack:
        before = threading.active_count()
        clients = [stack.enter_context(connect(server)) for _ in range(10)]
        for text in (b"one\n", b"two\n"):
            for client in clients:
                client.sendall(text)
                assert client.recv(100) == text.upper()
        assert threading.active_count() <= before + 2  # the watchdog, and who keeps the time
        for client in clients:
            client.close()
        until(lambda: server.stats().outcomes == {"finished": 10})


def test_what_arrives_with_the_end_of_the_handshake_is_not_lost(dispatcher):
    with encrypted(Upper, dispatcher).start() as server:
        for _ in range(5):
            with Stepwise(server) as client:
                client.run(client.tls.do_handshake)
                client.tls.write(b"one\n")
                client.tls.write(b"two\n")
                client.raw.sendall(client.outgoing.read())  # with the last part of the handshake
                assert client.run(lambda client=client: client.tls.read(4)) == b"ONE\n"
                assert client.run(lambda client=client: client.tls.read(4)) == b"TWO\n"


@pytest.mark.parametrize("pieces", [1, 1000], ids=["at once", "byte by byte"])
def test_a_proxy_header_comes_before_tls(dispatcher, pieces):
    async def handle(self):
        await self.reader.readline()
        self.writer.write(f"{self.client_address[0]} by {self.client_address.via[0]}".encode())

    with encrypted(asynchronous(handle), dispatcher, ProxyProtocol(["127.0.0.1"])).start() as server, Stepwise(server) as client:
        data = b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n" + client.hello()
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            client.raw.sendall(data[start : start + size])
        client.run(client.tls.do_handshake)
        client.tls.write(b"\n")
        client.raw.sendall(client.outgoing.read())
        assert client.run(lambda: client.tls.read(100)) == b"192.0.2.7 by 127.0.0.1"


def test_each_process_of_prefork_has_a_loop_that_shakes_hands():
    cert, key = certificate()
    program = """
import os, subprocess, sys
from socketkit import AsyncStreamRequestHandler, Server
cert, key, ca = sys.argv[1:]
class Upper(AsyncStreamRequestHandler):
    async def handle(self):
        self.writer.write((await self.reader.readline()).upper())
url = f"tls://127.0.0.1:0?tls.cert={cert}&tls.key={key}"
with Server(url, Upper, dispatcher="prefork:2/asyncio", lifecycle="graceful:drain=5") as server:
    child = subprocess.Popen([sys.executable, "-c", CLIENT, ca, str(server.addresses[0][1]), str(os.getpid())])
    server.serve_forever()
    assert child.wait() == 0
print(server.stats().outcomes)
"""
    client = """
import os, signal, socket, ssl, sys
ca, port, pid = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
for _ in range(5):
    with socket.create_connection(("127.0.0.1", int(port)), 10) as raw, context.wrap_socket(raw, server_hostname="localhost") as client:
        client.sendall(b"text\\n")
        assert client.recv(100) == b"TEXT\\n"
os.kill(int(pid), signal.SIGTERM)
"""
    program = program.replace("CLIENT", repr(client))
    assert python(program, cert, key, authority("Authority")).stdout == "{'finished': 5}\n"


def test_a_unix_socket_can_have_tls_too(dispatcher, tmp_path):
    cert, key = certificate()
    url = f"unix+tls://{tmp_path}/server?tls.cert={cert}&tls.key={key}"
    with Server(url, Upper, dispatcher=dispatcher).start(), socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(LATE)
        raw.connect(f"{tmp_path}/server")
        with trusting().wrap_socket(raw, server_hostname="localhost") as client:
            client.sendall(b"text\n")
            assert client.recv(100) == b"TEXT\n"


def test_a_handler_that_never_opens_its_streams_leaves_nothing_behind(dispatcher):
    class Forgets(AsyncStreamRequestHandler):
        async def setup(self):
            pass

        async def finish(self):
            pass

    with encrypted(Forgets, dispatcher).start() as server, connect(server) as client:
        with pytest.raises((ssl.SSLEOFError, ConnectionError)):
            client.recv(100)
        until(lambda: server.stats().outcomes == {"finished": 1})


# --- the end of a reply ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closes", [False, True], ids=["the server closes", "the handler closes"])
def test_the_end_of_a_reply_is_said_so_and_reaches_a_client_that_has_said_more(dispatcher, closes):
    async def handle(self):
        await self.reader.readexactly(1)
        await asyncio.to_thread(sent.wait, LATE)
        self.writer.writelines([bytes(1_000_000), bytearray(500_000), memoryview(bytes(500_000))])
        if closes:
            self.writer.close()
            await self.writer.wait_closed()

    sent = threading.Event()
    with encrypted(asynchronous(handle, limit=10), dispatcher).start() as server:
        with connect(server) as client:
            client.sendall(b"x")
            for _ in range(10):
                client.sendall(b"more that nobody reads" * 100)
            sent.set()
            assert len(ended(client)) == 2_000_000
        until(lambda: server.stats().outcomes == {"finished": 1})


def test_the_end_of_a_reply_is_said_so_although_something_is_left_to_read(dispatcher):
    async def handle(self):
        for _ in range(2):
            await self.reader.readexactly(1)
            self.writer.write(b".")
        while not self.writer.transport.get_read_buffer_size():  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0.001)

    with encrypted(asynchronous(handle, limit=10), dispatcher).start() as server, connect(server) as client:
        client.sendall(b"x" * 30)  # more than the reader takes
        assert client.recv(1) == b"."
        client.sendall(b"x" * 30)
        assert ended(client) == b"."


def test_a_client_gets_the_rest_as_long_as_it_reads(dispatcher):
    async def handle(self):
        self.writer.write(bytes(20_000_000))

    with encrypted(asynchronous(handle, flush_timeout=0.5), dispatcher).start() as server:
        with connect(server) as client:
            left = 20_000_000
            while left:
                left -= len(client.recv(16384))
                if left % 25 == 0:
                    time.sleep(0.001)  # a slow reader
            assert client.recv(1) == b""
        until(lambda: server.stats().outcomes == {"finished": 1})


def test_a_server_does_not_wait_for_the_goodbye_of_its_client(dispatcher):
    async def handle(self):
        self.writer.write(b"all")

    with encrypted(asynchronous(handle), dispatcher).start() as server, connect(server) as client:
        assert ended(client) == b"all"
        until(lambda: server.stats().outcomes == {"finished": 1})  # and the client has sent nothing


@pytest.mark.parametrize("waits", [False, True], ids=["at the end", "in drain"])
def test_a_reply_to_a_client_that_does_not_read_is_reset(dispatcher, waits):
    async def handle(self):
        self.writer.write(bytes(50_000_000))
        if waits:
            await self.writer.drain()

    limits = Limits(write_stall=0.2)
    handler = asynchronous(handle, flush_timeout=0.2)
    with encrypted(handler, dispatcher, limits=limits).start() as server, connect(server) as client:
        until(lambda: server.stats().outcomes == {"timed out" if waits else "failed": 1})
        with pytest.raises(ConnectionResetError):  # an SSLSocket does not tell that from an end without `close_notify`
            b"".join(iter(lambda: socket.socket.recv(client, 65536), b""))


def test_drain_waits_for_a_slow_client(dispatcher):
    async def handle(self):
        for _ in range(40):
            self.writer.write(bytes(1_000_000))
            await self.writer.drain()
            sizes.append(self.writer.transport.get_write_buffer_size())
        done.set()

    sizes, done = [], threading.Event()
    with encrypted(asynchronous(handle), dispatcher).start() as server, connect(server) as client:
        assert client.recv(1)
        assert not done.wait(0.2)  # the kernel keeps less than 40 MB
        assert len(ended(client)) == 40_000_000 - 1
        assert done.is_set()
    assert max(sizes) < 1_000_000


def test_a_forced_end_looks_like_a_cut(dispatcher):
    async def handle(self):
        self.writer.write(b"part")
        await asyncio.Event().wait()

    with encrypted(asynchronous(handle), dispatcher, drain=0.1).start() as server, connect(server) as client:
        assert client.recv(100) == b"part"
        report = server.stop()
        assert (report.forced, report.stuck) == (1, ())
        with pytest.raises((ssl.SSLEOFError, ConnectionError)):
            client.recv(100)
    assert server.stats().outcomes == {"failed": 1}


def test_a_task_that_is_cancelled_without_a_shutdown_says_no_goodbye(dispatcher):
    async def handle(self):
        self.writer.write(b"part")
        asyncio.current_task().cancel()
        await asyncio.sleep(LATE)

    with encrypted(asynchronous(handle), dispatcher).start() as server, connect(server) as client:
        with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
            ended(client)
        until(lambda: server.stats().outcomes == {"failed": 1})


def test_a_handler_may_write_to_a_client_that_has_gone(dispatcher):
    async def handle(self):
        for _ in range(100):
            self.writer.write(await self.reader.readline())

    with encrypted(asynchronous(handle), dispatcher, tickets=0).start() as server:  # with unread tickets a client resets
        with connect(server) as client:
            client.sendall(b"x\n" * 50)
        until(lambda: server.stats().outcomes in ({"finished": 1}, {"aborted": 1}))


def test_what_is_no_tls_any_more_ends_the_connection_without_a_word(dispatcher):
    with encrypted(Upper, dispatcher).start() as server, connect(server) as client:
        client.sendall(b"text\n")
        assert client.recv(100) == b"TEXT\n"
        socket.socket.sendall(client, b"in clear" * 10)
        with contextlib.suppress(OSError):
            ended(client)
        until(lambda: server.stats().active == 0)


# --- waiting for clients -----------------------------------------------------------------------------------------------


def test_silent_clients_cost_no_tls_object_and_hold_up_nobody(dispatcher):
    made = []

    class Counted(ssl.SSLObject):
        @classmethod
        def _create(cls, *arguments, **options):
            made.append(cls)
            return super()._create(*arguments, **options)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate())
    context.sslobject_class = Counted
    with encrypted(Upper, dispatcher, context=context).start() as server, contextlib.ExitStack() as stack:
        before = threading.active_count()
        for _ in range(200):
            stack.enter_context(socket.create_connection(server.addresses[0]))
        until(lambda: server.stats().active == 200)
        for _ in range(3):
            with connect(server) as client:
                client.sendall(b"text\n")
                assert client.recv(100) == b"TEXT\n"
        assert threading.active_count() <= before + 2  # the watchdog, and who keeps the time
        assert len(made) == 3


def test_a_handshake_byte_by_byte_is_served(dispatcher):
    def byte_by_byte(data):
        for each in data:
            client.raw.sendall(bytes([each]))

    with encrypted(Upper, dispatcher).start() as server, Stepwise(server) as client:
        client.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.run(client.tls.do_handshake, byte_by_byte)
        client.tls.write(b"text\n")
        assert client.run(lambda: client.tls.read(100), byte_by_byte) == b"TEXT\n"


@pytest.mark.parametrize("sends", ["nothing", "a byte", "half", "a flight"])
@pytest.mark.parametrize("before", [(), (ProxyProtocol(["127.0.0.1"]),)], ids=["tls", "proxy and tls"])
def test_a_handshake_that_takes_too_long_is_ended(dispatcher, sends, before):
    with encrypted(Upper, dispatcher, *before, limits=Limits(handshake=0.3)).start() as server:
        with Stepwise(server) as client:
            hello = client.hello()
            data = {"nothing": b"", "a byte": hello[:1], "half": hello[:100], "a flight": hello}[sends]
            client.raw.sendall((b"PROXY UNKNOWN\r\n" if before else b"") + data)
            assert bool(ended(client.raw)) == (sends == "a flight")
        until(lambda: server.stats().outcomes == {"timed out": 1})


def test_a_client_that_says_nothing_after_its_handshake_is_ended_by_the_limit_for_first_bytes(dispatcher):
    with encrypted(Upper, dispatcher, limits=Limits(first_byte=0.3)).start() as server, connect(server) as client:
        with pytest.raises((ssl.SSLEOFError, ConnectionError)):
            client.recv(100)
        until(lambda: server.stats().outcomes == {"timed out": 1})


def test_a_client_that_speaks_with_the_end_of_its_handshake_has_spoken(dispatcher):
    async def handle(self):
        await self.reader.readline()
        await asyncio.sleep(0.6)
        self.writer.write(b"heard")

    limits = Limits(first_byte=0.2)
    with encrypted(asynchronous(handle), dispatcher, limits=limits).start() as server, Stepwise(server) as client:
        client.run(client.tls.do_handshake)
        client.tls.write(b"\n")
        client.raw.sendall(client.outgoing.read())
        assert client.run(lambda: client.tls.read(100)) == b"heard"


def test_a_client_in_the_middle_of_its_handshake_is_served_by_a_server_that_stops(dispatcher):
    with encrypted(Upper, dispatcher, drain=LATE).start() as server, Stepwise(server) as client:
        client.raw.sendall(client.hello())
        client.incoming.write(client.raw.recv(10_000))
        server.stop(wait=False)
        client.run(client.tls.do_handshake)
        client.tls.write(b"text\n")
        assert client.run(lambda: client.tls.read(100)) == b"TEXT\n"


@pytest.mark.parametrize("sends", ["half", "a flight"])
def test_a_client_that_stops_in_the_middle_of_its_handshake_is_ended_with_the_drain(dispatcher, sends):
    with encrypted(Upper, dispatcher, drain=0.2).start() as server, Stepwise(server) as client:
        hello = client.hello()
        client.raw.sendall(hello if sends == "a flight" else hello[:100])
        if sends == "a flight":
            assert client.raw.recv(1)
        until(lambda: server.stats().active == 1)
        report = server.stop()
        assert (report.forced, report.stuck) == (1, ())
        with contextlib.suppress(ConnectionResetError):
            ended(client.raw)
    assert sum(server.stats().outcomes.values()) == 1
    assert server.stats().outcomes.keys() <= {"failed", "aborted"}


# --- failed handshakes -------------------------------------------------------------------------------------------------


def reasons(caplog):
    return [record.getMessage().partition("tls: ")[2] for record in caplog.records if "ended the connection" in record.getMessage()]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"GET / HTTP/1.1\r\n\r\n", "http request"), (bytes(range(7, 200)), "wrong version number"), (b"\x80\x80" * 50, "")],
    ids=["HTTP", "garbage", "old"],
)
def test_a_client_that_does_not_speak_tls_gets_one_alert_and_the_log_a_reason(dispatcher, data, reason, caplog):
    with encrypted(Upper, dispatcher).start() as server, socket.create_connection(server.addresses[0], timeout=LATE) as client:
        client.sendall(data)
        received = ended(client)
        assert (received[:1], len(received)) == (bytes([21]), 7)
        until(lambda: server.stats().outcomes == {"failed": 1})
    assert reason in reasons(caplog)[0]


@pytest.mark.parametrize(
    ("server_has", "client_has", "reason"),
    [
        ({"minimum": "1.3"}, {"maximum_version": ssl.TLSVersion.TLSv1_2}, "unsupported protocol"),
        ({"ciphers": "ECDHE-ECDSA-AES256-GCM-SHA384"}, {"ciphers": "ECDHE-ECDSA-AES128-GCM-SHA256"}, "no shared cipher"),
    ],
)
def test_a_handshake_without_common_ground_fails_with_its_reason(dispatcher, server_has, client_has, reason, caplog):
    context = trusting(maximum_version=ssl.TLSVersion.TLSv1_2)
    if "ciphers" in client_has:
        context.set_ciphers(client_has["ciphers"])
    with encrypted(Upper, dispatcher, **server_has).start() as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connect(server, context)
        until(lambda: server.stats().outcomes == {"failed": 1})
    assert reasons(caplog) == [reason]


@pytest.mark.parametrize("resets", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("sends", ["nothing", "half", "a flight"])
def test_a_client_that_leaves_during_its_handshake_is_aborted(dispatcher, sends, resets, caplog):
    with encrypted(Upper, dispatcher).start() as server:
        with Stepwise(server) as client:
            hello = client.hello()
            client.raw.sendall({"nothing": b"", "half": hello[:100], "a flight": hello}[sends])
            if sends == "a flight":
                assert client.raw.recv(1)
            if resets:
                client.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: server.stats().outcomes == {"aborted": 1})
    assert reasons(caplog) == ["the client closed the connection"]


def test_an_authority_that_the_client_does_not_trust_is_a_reason(dispatcher, caplog):
    with encrypted(Upper, dispatcher).start() as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(server, ssl.create_default_context())
        until(lambda: server.stats().active == 0)
        assert server.stats().outcomes == {"failed": 1}
    assert "unknown ca" in reasons(caplog)[0]


# --- options -----------------------------------------------------------------------------------------------------------


class Tells(AsyncStreamRequestHandler):
    async def handle(self):
        await self.reader.readexactly(1)
        peer = self.peer_certificate and dict(pair for (pair,) in self.peer_certificate["subject"])["commonName"]
        tls = self.writer.get_extra_info("ssl_object")
        self.writer.write(f"{peer} {tls.selected_alpn_protocol()} {tls.version()}".encode())


def told(server, context=None, name="localhost"):
    with connect(server, context, name) as client:
        client.sendall(b"x")
        return client.recv(100).decode()


@pytest.mark.parametrize("presents", [None, "Clients", "Strangers"])
@pytest.mark.parametrize("asks", ["optional", "required"])
def test_a_clients_certificate_is_checked_and_seen_by_the_handler(dispatcher, asks, presents):
    with encrypted(Tells, dispatcher, client=asks, client_ca=authority("Clients")).start() as server:
        context = trusting()
        if presents is not None:
            context.load_cert_chain(*certificate("somebody", signed_by=presents))
        if presents == "Clients" or (presents is None and asks == "optional"):
            assert told(server, context).startswith("somebody " if presents else "None ")
        else:
            with contextlib.suppress(ssl.SSLError, ConnectionError):  # TLS 1.3 refuses after the client's handshake
                assert told(server, context) == ""
            until(lambda: server.stats().outcomes.get("failed") == 1)


def test_the_handler_learns_what_was_agreed_on(dispatcher):
    with encrypted(Tells, dispatcher, alpn=["h2", "http/1.1"]).start() as server:
        context = trusting()
        context.set_alpn_protocols(["http/1.1"])
        assert told(server, context) == "None http/1.1 TLSv1.3"
        assert told(server, trusting(maximum_version=ssl.TLSVersion.TLSv1_2)) == "None None TLSv1.2"


def test_each_server_name_has_its_certificate(dispatcher):
    with encrypted(Tells, dispatcher, sni={"one.example": certificate("one.example")}).start() as server:
        for name in ("localhost", "one.example"):
            assert told(server, name=name)  # the client checks that the name is in the certificate


def test_a_programs_own_context_is_used(dispatcher):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate())
    context.set_alpn_protocols(["mine"])
    with encrypted(Tells, dispatcher, context=context).start() as server:
        client = trusting()
        client.set_alpn_protocols(["mine"])
        assert told(server, client) == "None mine TLSv1.3"


def test_without_tls_there_is_no_certificate():
    async def handle(self):
        self.writer.write(repr(self.peer_certificate).encode())

    with Server(TCP("127.0.0.1", 0), asynchronous(handle), dispatcher="asyncio").start() as server:
        with socket.create_connection(server.addresses[0], timeout=LATE) as client:
            assert ended(client) == b"None"


# --- refusals ----------------------------------------------------------------------------------------------------------


def test_a_handler_that_takes_only_a_socket_is_refused():
    with pytest.raises(IncompatibleError) as caught:
        encrypted(type("Bare", (AsyncRequestHandler,), {}))
    assert "TLS replaces the socket with a connection of the event loop, and Bare takes only a socket" in str(caught.value)
    assert "derive the handler from AsyncStreamRequestHandler" in str(caught.value)


def test_a_layer_after_the_loops_is_refused():
    @attrs.frozen
    class Reads:
        def wrap(self, request, client_address):
            return request, client_address

    cert, key = certificate()
    with pytest.raises(IncompatibleError, match="Reads cannot follow TLS, which leaves the connection to the event loop"):
        Server(Layered(TCP("127.0.0.1", 0), TLS(cert, key), Reads()), Upper, dispatcher="asyncio")


def test_any_other_layer_that_replaces_the_socket_is_refused_by_name():
    @attrs.frozen
    class Replaces:
        replaces_socket: ClassVar[bool] = True

        def wrap(self, request, client_address):
            return request, client_address

    with pytest.raises(IncompatibleError, match="Replaces replaces the socket with another object"):
        encrypted(Upper, "asyncio", Replaces())


# --- real clients ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_is_served(dispatcher):
    async def handle(self):
        while True:
            try:
                await self.reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return
            self.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage")

    with encrypted(asynchronous(handle), dispatcher).start() as server:
        url = f"https://localhost:{server.addresses[0][1]}/"
        command = ["curl", "-sS", "--fail", "--max-time", str(LATE), "--cacert", authority("Authority"), "--ipv4", url, url]
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"pagepage"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_is_served(dispatcher, version):
    with encrypted(Upper, dispatcher).start() as server:
        where = f"127.0.0.1:{server.addresses[0][1]}"
        command = ["openssl", "s_client", "-quiet", "-no_ign_eof", version, "-verify_return_error"]
        command += ["-CAfile", authority("Authority"), "-connect", where]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            client.stdin.write(b"text\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"TEXT\n"
            client.stdin.close()
            client.wait(LATE)
        until(lambda: server.stats().outcomes == {"finished": 1})


# --- upgrades ----------------------------------------------------------------------------------------------------------


def server_context():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate())
    return context


class Greets(AsyncStreamRequestHandler):
    """Answers lines in upper case, and begins TLS when it is asked to."""

    context: ClassVar = None

    async def handle(self):
        while line := await self.reader.readline():
            if line == b"STARTTLS\n":
                self.writer.write(b"go ahead\n")
                await self.upgrade_tls(self.context and server_context())
            else:
                self.writer.write(line.upper())
                await self.writer.drain()


class GreetsByContext(Greets):
    """The same with a context of its own, and not that of a layer."""

    context: ClassVar = True


def in_clear(handler, dispatcher, **limits):
    transport = TCP("127.0.0.1", 0)
    if handler is Greets:
        transport = Layered(transport, TLS(*certificate(), upgrade=True))
    return Server(transport, handler, dispatcher=dispatcher, lifecycle=Graceful(drain=5), limits=Limits(**limits))


@contextlib.contextmanager
def asking(server, ask=b"STARTTLS\n"):
    """Return a client that was told to begin TLS."""
    with socket.create_connection(server.addresses[0], timeout=LATE) as raw:
        raw.sendall(ask)
        assert raw.recv(100) == b"go ahead\n"
        yield raw


@pytest.mark.parametrize("handler", [Greets, GreetsByContext])
def test_a_connection_is_upgraded(dispatcher, handler):
    with in_clear(handler, dispatcher).start() as server, asking(server) as raw:
        with trusting().wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False) as client:
            for text in (b"one\n", b"x" * 50_000 + b"\n"):
                client.sendall(text)
                received = b""
                while len(received) < len(text):
                    received += client.recv(65536)
                assert received == text.upper()
            client.unwrap().close()
        until(lambda: server.stats().outcomes == {"finished": 1})


def test_an_upgraded_connection_says_when_its_reply_is_complete(dispatcher):
    async def handle(self):
        former = self.writer
        await self.reader.readline()
        former.write(b"go ahead\n")
        assert self.peer_certificate is None
        await self.upgrade_tls(server_context())
        assert self.writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        self.writer.write(bytes(3_000_000))
        former.write(b"by the writer of before")
        await former.drain()

    with in_clear(asynchronous(handle), dispatcher).start() as server:
        with asking(server) as raw, trusting().wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False) as client:
            assert ended(client) == bytes(3_000_000) + b"by the writer of before"
        until(lambda: server.stats().outcomes == {"finished": 1})


def test_the_limits_of_a_writer_survive_an_upgrade(dispatcher):
    async def handle(self):
        await self.reader.readline()
        self.writer.write(b"go ahead\n")
        await self.upgrade_tls(server_context())
        self.writer.write(bytes(50_000_000))
        await self.writer.drain()

    with in_clear(asynchronous(handle), dispatcher, write_stall=0.2).start() as server, asking(server) as raw:
        with trusting().wrap_socket(raw, server_hostname="localhost") as client:
            until(lambda: server.stats().outcomes == {"timed out": 1})
            with pytest.raises(ConnectionResetError):
                b"".join(iter(lambda: socket.socket.recv(client, 65536), b""))


def test_what_was_sent_in_clear_before_the_handshake_is_refused(dispatcher, caplog):
    with in_clear(Greets, dispatcher).start() as server, socket.create_connection(server.addresses[0], timeout=LATE) as raw:
        raw.sendall(b"STARTTLS\nput in by somebody\n")
        with contextlib.suppress(ConnectionResetError):
            assert ended(raw) in {b"", b"go ahead\n"}
        until(lambda: server.stats().outcomes == {"failed": 1})
    assert "has sent more than its request for TLS in clear" in caplog.text


def test_what_is_sent_in_clear_after_the_invitation_fails_the_handshake(dispatcher, caplog):
    with in_clear(Greets, dispatcher).start() as server, asking(server) as raw:
        raw.sendall(b"put in by somebody\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"PUT IN" not in ended(raw)
        until(lambda: server.stats().outcomes == {"failed": 1})
    assert "tls: " in caplog.text


@pytest.mark.parametrize("handler", [Greets, GreetsByContext])
@pytest.mark.parametrize("sends", ["nothing", "half"])
def test_the_handshake_of_an_upgrade_is_bounded(dispatcher, sends, handler, caplog):
    with in_clear(handler, dispatcher, handshake=0.2).start() as server, asking(server) as raw:
        if sends == "half":
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            with pytest.raises(ssl.SSLWantReadError):
                trusting().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
            raw.sendall(outgoing.read()[:100])
        with contextlib.suppress(ConnectionResetError):
            assert ended(raw) == b""
        until(lambda: server.stats().outcomes == {"timed out": 1})
    assert "tls: the handshake was not over within 0.2 s" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_client_that_leaves_instead_of_an_upgrade_is_aborted(dispatcher, when):
    with in_clear(Greets, dispatcher).start() as server:
        if when == "after":
            with asking(server):
                pass
        else:
            with socket.create_connection(server.addresses[0], timeout=LATE) as raw:
                raw.sendall(b"STARTTLS\n")
                raw.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    ended(raw)
        until(lambda: server.stats().outcomes == {"aborted": 1})


def test_a_drain_ends_an_upgrade_that_waits(dispatcher):
    with in_clear(Greets, dispatcher).start() as server, asking(server) as raw:
        report = server.stop(drain=0.2)
        assert (report.forced, report.stuck) == (1, ())
        with contextlib.suppress(ConnectionResetError):
            assert ended(raw) == b""
    assert sum(server.stats().outcomes.values()) == 1


def test_an_upgrade_without_a_certificate_says_what_is_missing(dispatcher, caplog):
    with in_clear(asynchronous(lambda self: self.upgrade_tls()), dispatcher).start() as server:
        with socket.create_connection(server.addresses[0], timeout=LATE) as raw:
            raw.sendall(b"x")
            with contextlib.suppress(ConnectionResetError):
                assert ended(raw) == b""
        until(lambda: server.stats().outcomes == {"failed": 1})
    assert "add the layer TLS(..., upgrade=True) to the transport, or give it an ssl.SSLContext" in caplog.text


def test_a_handler_may_catch_what_has_ended_an_upgrade(dispatcher):
    async def handle(self):
        await self.reader.readline()
        self.writer.write(b"go ahead\n")
        with pytest.raises(UpgradeError, match="the client closed the connection"):
            await self.upgrade_tls(server_context())

    with in_clear(asynchronous(handle), dispatcher).start() as server:
        with asking(server):
            pass
        until(lambda: server.stats().outcomes == {"aborted": 1})


def test_a_connection_is_upgraded_once(dispatcher):
    async def handle(self):
        await self.reader.readexactly(1)
        with pytest.raises(RuntimeError, match="only once"):
            await self.upgrade_tls(server_context())
        self.writer.write(b"still here")

    with encrypted(asynchronous(handle), dispatcher).start() as server, connect(server) as client:
        client.sendall(b"x")
        assert ended(client) == b"still here"


def test_openssl_upgrades_a_connection(dispatcher):
    async def handle(self):
        self.writer.write(b"220 ready\r\n")
        while line := await self.reader.readline():
            if line.startswith(b"EHLO"):
                self.writer.write(b"250-here\r\n250 STARTTLS\r\n")
            elif line == b"STARTTLS\r\n":
                self.writer.write(b"220 go ahead\r\n")
                await self.writer.drain()
                await self.upgrade_tls(server_context())
            else:
                self.writer.write(line.upper())

    with in_clear(asynchronous(handle), dispatcher).start() as server:
        where = f"127.0.0.1:{server.addresses[0][1]}"
        command = ["openssl", "s_client", "-quiet", "-no_ign_eof", "-starttls", "smtp", "-verify_return_error"]
        command += ["-CAfile", authority("Authority"), "-connect", where]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            client.stdin.write(b"text\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"TEXT\n"
            client.stdin.close()
            client.wait(LATE)
