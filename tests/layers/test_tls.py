"""TLS: a request is served as without it, a silent client costs no thread, and every failed handshake has a reason."""

import contextlib
import http.client
import http.server
import logging
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.green import GREEN
from helpers.rooms import Rooms
from helpers.support import python
from socketkit import TCP, TLS, Graceful, Layered, Limits, Server, StreamRequestHandler
from socketkit._system import logs
from socketkit.errors import ConfigError
from socketkit.testing import FakeClock
from socketkit.testing.certificates import authority, certificate

DISPATCHERS = ("sync", "thread", "pool:2", "adaptive:8", "executor", "asyncio", GREEN)
PARKING = ("pool:2", "adaptive:8", "executor", "asyncio")
LATE = 20


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = b"page"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Upper(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


def upper(request, client_address, server):
    while data := request.recv(1000):
        request.sendall(data.upper())


def encrypted(handler, dispatcher="adaptive", limits=None, drain=5, clock=time.monotonic, **options):
    cert, key = certificate()
    options = {"cert": cert, "key": key, **options} if "context" not in options else options
    return Server(
        Layered(TCP("127.0.0.1", 0), TLS(**options)),
        handler,
        dispatcher=dispatcher,
        lifecycle=Graceful(drain=drain),
        limits=limits or Limits(),
        clock=clock,
    )


def trusting(name="Authority", **settings):
    context = ssl.create_default_context(cafile=authority(name))
    for setting, value in settings.items():
        setattr(context, setting, value)
    return context


def connect(server, context=None, name="localhost"):
    raw = socket.create_connection(server.addresses[0], timeout=LATE)
    return (context or trusting()).wrap_socket(raw, server_hostname=name)


def until(condition):
    end = time.monotonic() + LATE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


# --- serving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [Upper, upper])
@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_request_is_served_as_without_tls(dispatcher, handler):
    with encrypted(handler, dispatcher).start() as server:
        for _ in range(3):
            with connect(server) as client:
                for text in (b"one\n", b"two\n"):
                    client.sendall(text)
                    assert client.recv(100) == text.upper()
        until(lambda: server.stats().outcomes == {"finished": 3})


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_conversation_is_served_request_by_request(dispatcher):
    with encrypted(Page, dispatcher).start() as server:
        client = http.client.HTTPSConnection(*server.addresses[0], timeout=LATE, context=trusting())
        for _ in range(5):
            client.request("GET", "/")
            assert client.getresponse().read() == b"page"
        client.close()


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_requests_in_one_record_are_all_answered(dispatcher):
    with encrypted(Page, dispatcher).start() as server, connect(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 5000 + b"\r\n\r\n" + b"GET / HTTP/1.1\r\n\r\n" * 20)
        received = b""
        while received.count(b"page") < 21:
            received += client.recv(10_000)


@pytest.mark.parametrize("dispatcher", ["fork", "prefork:2", "prefork:2/fork"])
def test_processes_serve_it_too(dispatcher):
    cert, key = certificate()
    program = """
import os, subprocess, sys
from socketkit import Server, StreamRequestHandler
cert, key, ca, dispatcher = sys.argv[1:]
class Upper(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())
server = Server(f"tls://127.0.0.1:0?tls.cert={cert}&tls.key={key}", Upper, dispatcher=dispatcher, lifecycle="graceful:drain=5")
with server:
    child = subprocess.Popen([sys.executable, "-c", CLIENT, ca, str(server.addresses[0][1]), str(os.getpid())])
    server.serve_forever()
    assert child.wait() == 0
print(server.stop())
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
    assert "0 forced, 0 stuck" in python(program, cert, key, authority("Authority"), dispatcher).stdout


def test_a_session_is_resumed_by_another_worker():
    program = """
import os, socket, ssl, subprocess, sys
from socketkit import Server, StreamRequestHandler
cert, key, ca = sys.argv[1:]
class Tells(StreamRequestHandler):
    speaks_first = True
    def handle(self):
        self.wfile.write(b"%d" % os.getpid())
        self.rfile.read()
server = Server(f"tls://127.0.0.1:0?tls.cert={cert}&tls.key={key}", Tells, dispatcher="prefork:2/sync", lifecycle="graceful:drain=5")
with server:
    child = subprocess.Popen([sys.executable, "-c", CLIENT, ca, str(server.addresses[0][1]), str(os.getpid())])
    server.serve_forever()
    assert child.wait() == 0
"""
    client = """
import os, signal, socket, ssl, sys
ca, port, pid = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
def connect(session=None):
    raw = socket.create_connection(("127.0.0.1", int(port)), 10)
    return context.wrap_socket(raw, server_hostname="localhost", session=session)
try:
    with connect() as first:
        one = first.recv(100)
        with connect(first.session) as second:  # the worker of the first one is in its handler
            assert second.recv(100) != one
            assert second.session_reused
finally:
    os.kill(int(pid), signal.SIGTERM)
"""
    cert, key = certificate()
    python(program.replace("CLIENT", repr(client)), cert, key, authority("Authority"))


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_the_end_of_a_reply_is_said_so_and_reaches_a_client_that_has_said_more(dispatcher):
    def answer(request, client_address, server):
        request.recv(10)
        sent.wait(LATE)
        request.sendall(bytes(1_000_000))

    sent = threading.Event()
    with encrypted(answer, dispatcher).start() as server, connect(server, trusting(options=ssl.OP_ALL)) as client:
        client.sendall(b"x")
        client.sendall(b"more that nobody reads")
        sent.set()
        received = 0
        while data := client.recv(100_000):  # without close_notify it would raise
            received += len(data)
        assert received == 1_000_000


@pytest.mark.parametrize("dispatcher", ["sync", "thread", "pool:2", GREEN])
def test_a_server_may_hand_its_requests_to_threads_of_its_own(dispatcher):
    class Own(Server):
        def process_request(self, request, client_address):
            thread = threading.Thread(target=self.later, args=(request, client_address))
            thread.start()
            threads.append(thread)
            if len(threads) == 2:
                both.set()

        def later(self, *request):
            assert both.wait(LATE)  # the loop has let go of the first one
            super().process_request(*request)

    threads, both = [], threading.Event()
    cert, key = certificate()
    with Own(Layered(TCP("127.0.0.1", 0), TLS(cert, key)), upper, dispatcher=dispatcher).start() as server:
        with ThreadPoolExecutor(2) as connecting:
            clients = list(connecting.map(connect, [server] * 2))
        for client in clients:
            with client:
                client.sendall(b"text\n")
                assert client.recv(100) == b"TEXT\n"
    for thread in threads:
        thread.join()
    until(lambda: server.stats().active == 0)


@pytest.mark.parametrize("dispatcher", ["sync", "thread", GREEN])
def test_no_handler_sees_plain_text_because_a_server_leaves_out_a_step(dispatcher, caplog):
    class LeavesOut(Server):
        def process_request(self, request, client_address):
            self.process_request_thread(request, client_address)

    cert, key = certificate()
    with LeavesOut(Layered(TCP("127.0.0.1", 0), TLS(cert, key)), upper, dispatcher=dispatcher).start() as server:
        with socket.create_connection(server.addresses[0], timeout=LATE) as client:
            client.sendall(b"text\n")
            assert client.recv(100) == b""
        until(lambda: server.stats().outcomes == {"failed": 1})
    assert "call process_request, not finish_request" in caplog.text


# --- waiting for clients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", [GREEN, *PARKING])
def test_silent_clients_hold_no_thread_and_hold_up_nobody(dispatcher):
    with encrypted(Page, dispatcher).start() as server:
        silent = [socket.create_connection(server.addresses[0]) for _ in range(100)]
        hello = client_hello()
        for each in silent[50:]:
            each.sendall(hello[:100])  # and now nothing
        until(lambda: server.stats().active >= 100)
        for _ in range(5):
            with connect(server) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert b"200" in client.recv(1000)
        for each in silent:
            each.close()


def client_hello():
    """Return the first bytes of a client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_the_timeout_of_a_connection_is_never_set_to_what_it_is(dispatcher, monkeypatch):
    changes = []

    def settimeout(self, value):
        changes.append((self.gettimeout(), value))
        socket.socket.settimeout(self, value)

    monkeypatch.setattr(ssl.SSLSocket, "settimeout", settimeout, raising=False)
    client = trusting()
    client.sslsocket_class = type("Client", (ssl.SSLSocket,), {"settimeout": socket.socket.settimeout})
    with encrypted(Upper, dispatcher).start() as server, connect(server, client) as talk:
        talk.sendall(b"text\n")
        assert talk.recv(100) == b"TEXT\n"
    assert changes
    assert all(before != after for before, after in changes)


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_handshake_byte_by_byte_is_served(dispatcher):
    with encrypted(Upper, dispatcher).start() as server:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(server.addresses[0], timeout=LATE) as raw:

            def until_done(step):
                while True:
                    try:
                        return step()
                    except ssl.SSLWantReadError:
                        for each in outgoing.read():
                            raw.sendall(bytes([each]))
                        incoming.write(raw.recv(10_000))

            until_done(tls.do_handshake)
            tls.write(b"text\n")
            assert until_done(lambda: tls.read(100)) == b"TEXT\n"


@pytest.mark.parametrize("sends", [b"", b"\x16\x03\x01", "half"])
@pytest.mark.parametrize("dispatcher", ["thread", GREEN, *PARKING])
def test_a_handshake_that_takes_too_long_is_ended(dispatcher, sends):
    with encrypted(Upper, dispatcher, Limits(handshake=0.2)).start() as server:
        with socket.create_connection(server.addresses[0], timeout=LATE) as client:
            client.sendall(client_hello()[:100] if sends == "half" else sends)
            assert client.recv(100) == b""
        until(lambda: server.stats().outcomes == {"timed out": 1})


@pytest.mark.parametrize("dispatcher", [GREEN, *PARKING])
def test_a_client_that_says_nothing_after_its_handshake_is_ended_by_the_limit_for_first_bytes(dispatcher):
    with encrypted(Upper, dispatcher, Limits(first_byte=0.3)).start() as server, connect(server) as client:
        assert client.recv(100) == b""
        until(lambda: server.stats().outcomes == {"timed out": 1})


@pytest.mark.parametrize("dispatcher", ["thread", *PARKING])
def test_a_request_that_comes_with_the_end_of_the_handshake_is_a_first_byte(dispatcher):
    rooms, clock = Rooms(), FakeClock()
    with encrypted(rooms, dispatcher, Limits(first_byte=30), clock=clock).start() as server:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(server.addresses[0], timeout=LATE) as raw:
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            raw.sendall(outgoing.read())
            incoming.write(raw.recv(10_000))
            tls.do_handshake()
            tls.write(b"hold")
            raw.sendall(outgoing.read())
            assert rooms.inside.acquire(timeout=LATE)
            clock.advance(31)
            rooms.leave.set()
            until(lambda: server.stats().outcomes)
    assert server.stats().outcomes == {"finished": 1}


@pytest.mark.parametrize("dispatcher", ["thread", GREEN, *PARKING])
def test_a_stop_does_not_wait_for_silent_clients(dispatcher):
    with encrypted(Upper, dispatcher, Limits(handshake=None), drain=60).start() as server:
        silent = [socket.create_connection(server.addresses[0], timeout=LATE) for _ in range(20)]
        until(lambda: server.stats().active == 20)
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < LATE
        for each in silent:
            with each:
                assert each.recv(1) == b""
        assert set(server.stats().outcomes) <= {"finished", "refused"}  # parked connections count as finished


@pytest.mark.parametrize("dispatcher", [GREEN, *PARKING])
def test_a_client_in_the_middle_of_its_handshake_is_served_by_a_server_that_stops(dispatcher):
    with encrypted(Upper, dispatcher, drain=LATE).start() as server:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(server.addresses[0], timeout=LATE) as raw:
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            raw.sendall(outgoing.read())
            incoming.write(raw.recv(10_000))
            server.stop(wait=False)
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                raise AssertionError("the server sends all in one flight") from None
            tls.write(b"text\n")
            raw.sendall(outgoing.read())
            received = b""
            while received[-5:] != b"TEXT\n":
                incoming.write(raw.recv(10_000))
                try:
                    received += tls.read(100)
                except ssl.SSLWantReadError:
                    continue


# --- failed handshakes -------------------------------------------------------------------------------------------------


def reasons(caplog):
    return [record.getMessage().partition("tls: ")[2] for record in caplog.records if "ended the connection" in record.getMessage()]


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"GET / HTTP/1.1\r\n\r\n", "http request"), (bytes(range(7, 200)), "wrong version number"), (b"\x80\x80" * 50, "")],
    ids=["HTTP", "garbage", "old"],
)
def test_a_client_that_does_not_speak_tls_gets_one_alert_and_the_log_a_reason(dispatcher, data, reason, caplog):
    caplog.set_level(logging.DEBUG, "socketkit")
    with encrypted(Upper, dispatcher).start() as server, socket.create_connection(server.addresses[0], timeout=LATE) as client:
        client.sendall(data)
        received = b""
        try:
            while more := client.recv(1000):
                received += more
        except ConnectionResetError:
            pass
        assert received[:1] == bytes([21])
        assert len(received) == 7
        until(lambda: server.stats().outcomes == {"failed": 1})
    assert reason in reasons(caplog)[0]


def test_a_client_without_a_common_version_fails_with_that_reason(caplog):
    caplog.set_level(logging.DEBUG, "socketkit")
    with encrypted(Upper, minimum="1.3").start() as server:
        with pytest.raises(ssl.SSLError):
            connect(server, trusting(maximum_version=ssl.TLSVersion.TLSv1_2))
        until(lambda: server.stats().outcomes == {"failed": 1})
    assert reasons(caplog) == ["unsupported protocol"]


def test_a_client_cannot_renegotiate():
    with encrypted(Upper).start() as server:
        where = f"127.0.0.1:{server.addresses[0][1]}"
        command = ["openssl", "s_client", "-tls1_2", "-CAfile", authority("Authority"), "-connect", where]
        ended = subprocess.run(command, input=b"R\n", capture_output=True, timeout=LATE, check=False)
        assert b"no renegotiation" in ended.stderr
        with connect(server) as client:
            client.sendall(b"text\n")
            assert client.recv(100) == b"TEXT\n"


@pytest.mark.parametrize("dispatcher", ["thread", GREEN, *PARKING])
def test_a_reply_that_is_cut_off_does_not_look_complete(dispatcher):
    def answer(request, client_address, server):
        request.sendall(b"part")
        request.recv(1)

    with encrypted(answer, dispatcher, drain=0.2).start() as server:
        raw = socket.create_connection(server.addresses[0], timeout=LATE)
        with trusting().wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False) as client:
            assert client.recv(100) == b"part"
            server.stop()
            with pytest.raises((ssl.SSLEOFError, ConnectionError)):
                client.recv(100)


def resets(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


@pytest.mark.parametrize("leave", [socket.socket.close, resets])
@pytest.mark.parametrize("dispatcher", ["thread", "adaptive:8"])
def test_a_client_that_leaves_during_a_reply_has_aborted_and_the_log_says_nothing(dispatcher, leave, caplog):
    def answer(request, client_address, server):
        request.sendall(bytes(20_000_000))

    with encrypted(answer, dispatcher).start() as server:
        client = connect(server)
        client.sendall(b"x")
        assert client.recv(100)
        leave(client)
        until(lambda: server.stats().outcomes == {"aborted": 1})
    logs.flush()
    assert not caplog.records


def test_a_client_that_resets_its_connection_after_its_first_bytes_has_aborted():
    with encrypted(Upper, "sync") as server:
        client = socket.create_connection(server.addresses[0], timeout=LATE)
        client.sendall(client_hello()[:100])
        resets(client)
        server.start()
        until(lambda: server.stats().outcomes == {"aborted": 1})


@pytest.mark.parametrize("sends", ["send", "sendall"])
@pytest.mark.parametrize("dispatcher", ["thread", "adaptive:8"])
def test_a_client_that_takes_nothing_of_what_it_is_sent_is_given_up(dispatcher, sends):
    def answer(request, client_address, server):
        if request.recv(10) == b"much":
            while True:
                getattr(request, sends)(bytes(100_000))
        timeouts.append(request.gettimeout())

    timeouts = []
    with encrypted(answer, dispatcher, Limits(write_stall=0.3)).start() as server:
        with connect(server) as client:
            client.sendall(b"first")
            assert client.recv(1) == b""
        with connect(server) as client:
            client.sendall(b"much")
            until(lambda: server.stats().outcomes == {"finished": 1, "timed out": 1})
    assert timeouts == [None]


# --- options -----------------------------------------------------------------------------------------------------------


class Tells(StreamRequestHandler):
    def handle(self):
        peer = self.peer_certificate and dict(pair for (pair,) in self.peer_certificate["subject"])["commonName"]
        self.wfile.write(f"{peer} {self.request.selected_alpn_protocol()} {self.request.version()}".encode())


def told(server, context=None, name="localhost"):
    with connect(server, context, name) as client:
        client.sendall(b"x")
        return client.recv(100).decode()


@pytest.mark.parametrize("presents", [None, "Clients", "Strangers"])
@pytest.mark.parametrize("asks", ["optional", "required"])
def test_a_clients_certificate_is_checked_and_seen_by_the_handler(asks, presents):
    with encrypted(Tells, client=asks, client_ca=authority("Clients")).start() as server:
        context = trusting()
        if presents is not None:
            context.load_cert_chain(*certificate("somebody", signed_by=presents))
        if presents == "Clients" or (presents is None and asks == "optional"):
            assert told(server, context).startswith("somebody " if presents else "None ")
        else:
            with contextlib.suppress(ssl.SSLError, ConnectionError):  # TLS 1.3 refuses after the client's handshake
                assert told(server, context) == ""
            until(lambda: server.stats().outcomes.get("failed") == 1)


def test_protocols_versions_and_ciphers_are_as_asked_for():
    cipher = "ECDHE-ECDSA-AES256-GCM-SHA384"
    with encrypted(Tells, alpn=["h2", "http/1.1"], ciphers=cipher).start() as server:
        context = trusting()
        context.set_alpn_protocols(["http/1.1"])
        assert told(server, context) == "None http/1.1 TLSv1.3"
        old = trusting(maximum_version=ssl.TLSVersion.TLSv1_2)
        with connect(server, old) as client:
            assert client.cipher()[0] == cipher


def test_each_server_name_has_its_certificate():
    with encrypted(Tells, sni={"one.example": certificate("one.example"), "two.example": certificate("two.example")}).start() as server:
        for name in ("localhost", "one.example", "two.example", "ONE.example"):
            assert told(server, name=name)  # the client checks that the name is in the certificate


@pytest.mark.parametrize("how", ["object", "function", "name"])
def test_a_programs_own_context_is_used(how, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate())
    context.set_alpn_protocols(["mine"])
    monkeypatch.setattr(ssl, "made_for_this_test", lambda: context, raising=False)
    given = {"object": context, "function": lambda: context, "name": "ssl:made_for_this_test"}[how]
    with encrypted(Tells, context=given).start() as server:
        client = trusting()
        client.set_alpn_protocols(["mine"])
        assert told(server, client) == "None mine TLSv1.3"


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_keys_of_either_kind_and_encrypted_ones_are_loaded(kind):
    cert, key = certificate(kind=kind, password="secret")
    with encrypted(Tells, cert=cert, key=key, password="secret").start() as server:
        assert told(server)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("tls.cert=/nowhere.pem", "cannot read /nowhere.pem: No such file or directory"),
        ("tls.cert={cert}&tls.key={other}", "cannot use {cert} and {other}: key values mismatch"),
        ("tls.cert={cert}", "there is no private key in {cert}; name the file that has it"),
        ("tls.cert={cert}&tls.key={cert}", "there is no private key in {cert}; name the file that has it"),
        ("tls.cert={expired}&tls.key={expired_key}", "the certificate in {expired} has expired"),
        ("tls.cert={locked}&tls.key={locked_key}", "its key is encrypted; give the password"),
        ("tls.cert={locked}&tls.key={locked_key}&tls.password=wrong", "cannot use {locked} and {locked_key}: "),
        ("tls.cert={cert}&tls.key={key}&tls.ciphers=nonsense", "OpenSSL knows none of the ciphers 'nonsense'"),
        ("tls.cert={cert}&tls.key={key}&tls.client=required", "needs client_ca"),
        ("tls.cert={cert}&tls.key={key}&tls.client=required&tls.client_ca={key}", "cannot use {key}: "),
        ("tls.key={key}", "cert is missing"),
        ("tls.context=ssl:nothing", "gives no context"),
        ("tls.context=ssl:OPENSSL_VERSION&tls.cert={cert}", "context excludes cert"),
        ("tls.context=os:getcwd", "it must return an ssl.SSLContext"),
    ],
)
def test_what_cannot_work_is_refused_when_the_server_is_composed(url, says):
    cert, key = certificate()
    expired, expired_key = certificate("late", days=-1)
    locked, locked_key = certificate(password="secret")
    files = {"cert": cert, "key": key, "other": certificate("another")[1], "expired": expired, "expired_key": expired_key}
    files |= {"locked": locked, "locked_key": locked_key}
    with pytest.raises(ConfigError) as caught:
        Server("tls://127.0.0.1:0?" + url.format(**files), upper)
    assert says.format(**files) in str(caught.value)


def test_a_key_that_anybody_can_read_is_warned_of(tmp_path, caplog):
    _, key = certificate()
    open_key = shutil.copy(key, tmp_path / "open.key")
    os.chmod(open_key, 0o644)
    encrypted(upper, key=open_key)
    logs.flush()
    assert [record.getMessage() for record in caplog.records if str(open_key) in record.getMessage()]
    caplog.clear()
    os.chmod(open_key, 0o640)
    encrypted(upper, key=open_key)
    logs.flush()
    assert not caplog.records


# --- real clients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_curl_is_served(dispatcher):
    with encrypted(Page, dispatcher).start() as server:
        url = f"https://localhost:{server.addresses[0][1]}/"
        command = ["curl", "-sS", "--fail", "--max-time", str(LATE), "--cacert", authority("Authority"), "--ipv4", url, url]
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"pagepage"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_is_served(version):
    with encrypted(Upper).start() as server:
        where = f"127.0.0.1:{server.addresses[0][1]}"
        command = [
            "openssl",
            "s_client",
            "-quiet",
            "-no_ign_eof",
            version,
            "-verify_return_error",
            "-CAfile",
            authority("Authority"),
            "-connect",
            where,
        ]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with client:
            client.stdin.write(b"text\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"TEXT\n"
            client.stdin.close()
            client.wait(LATE)
