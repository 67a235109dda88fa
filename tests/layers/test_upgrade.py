"""STARTTLS: a handler that has talked in clear goes on over TLS, with all that holds for connections that were encrypted before."""

import contextlib
import logging
import os
import re
import shutil
import signal
import smtplib
import socketserver
import ssl
import subprocess
import sys
import threading
import time

import pytest

import socketkit.socketserver as classic
from helpers import innards
from helpers.mail import Mail, MailConversation
from helpers.support import TESTS
from helpers.upgrades import LATE, Upper, UpperWithContext, asked, connect, encrypted, read_line, server_side, to_the_end, trusting
from socketkit import (
    TCP,
    TLS,
    BaseRequestHandler,
    ConversationHandler,
    Graceful,
    Layered,
    Limits,
    ProxyProtocol,
    Server,
)
from socketkit._engine.override import Override
from socketkit._system import logs
from socketkit.composition import config
from socketkit.errors import ConfigError, IncompatibleError, UpgradeError
from socketkit.testing import FakeClock
from socketkit.testing.certificates import authority, certificate
from socketkit.testing.clients import address
from socketkit.testing.programs import Program, with_path

DISPATCHERS = ("sync", "thread", "pool:2", "adaptive:8", "executor", "asyncio")
PARKING = ("pool:2", "adaptive:8", "executor", "asyncio")
EVERY = ("sync", "thread", "fork", "pool:2", "adaptive:8", "executor", "asyncio", "prefork:2", "prefork:2/fork", "prefork:2/pool:2")


def upgrading(handler, dispatcher="adaptive", limits=None, drain=5, **options):
    """Return a server whose connections are in clear until the handler has them encrypted."""
    kind, clock = options.pop("kind", Server), options.pop("clock", time.monotonic)
    transport = Layered(TCP("127.0.0.1", 0), TLS(*certificate(), upgrade=True, **options))
    return kind(transport, handler, dispatcher=dispatcher, lifecycle=Graceful(drain=drain), limits=limits or Limits(), clock=clock)


@contextlib.contextmanager
def serving(handler, dispatcher):
    """Serve in a process of its own; the block gets the address."""
    cert, key = certificate()
    listen = f"tcp+tls://127.0.0.1:0?tls.cert={cert}&tls.key={key}&tls.upgrade=true"
    command = ("-m", "socketkit", "serve", f"helpers.mail:{handler.__name__}", "--listen", listen, "--dispatcher", dispatcher)
    with Program.python(*command, env=with_path(TESTS)) as program:
        yield address(program.serving()[0])
        assert program.stop(signal.SIGTERM) == 0
        assert "Traceback" not in program.output


def until(condition):
    end = time.monotonic() + LATE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def ended(server, **outcomes):
    """Wait until no request runs, and compare the outcomes."""
    until(lambda: server.stats().active == 0)
    assert server.stats().outcomes == {name.replace("_", " "): count for name, count in outcomes.items()}


# --- clients of all kinds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [Mail, MailConversation])
@pytest.mark.parametrize("dispatcher", EVERY)
def test_clients_send_mail_over_a_connection_that_was_upgraded(dispatcher, handler):
    with serving(handler, dispatcher) as where:
        for _ in range(3):
            with smtplib.SMTP(*where, timeout=LATE) as client:
                client._host = "localhost"  # the name to check: that of the certificate
                assert client.noop() == (250, b"NOOP over nothing")
                client.starttls(context=trusting())
                assert client.noop() == (250, b"NOOP over TLSv1.3")
                assert client.sendmail("a@localhost", ["b@localhost"], "text\n" * 1000) == {}
                assert not client.has_extn("starttls")


@pytest.mark.clients("openssl")
@pytest.mark.parametrize("dispatcher", ["thread", "adaptive:8", "fork", "prefork:2"])
def test_openssl_upgrades_and_is_told_the_end(dispatcher):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    with serving(Mail, dispatcher) as (host, port):
        command = ["openssl", "s_client", "-starttls", "smtp", "-CAfile", authority("Authority"), "-verify_return_error", "-quiet"]
        command += ["-connect", f"{host}:{port}"]
        done = subprocess.run(command, input=b"NOOP\nQUIT\n", capture_output=True, timeout=LATE, check=False)
        assert b"250 NOOP over TLSv1.3" in done.stdout
        assert b"221 bye" in done.stdout
        assert b"unexpected eof" not in done.stderr


@pytest.mark.clients("curl")
@pytest.mark.parametrize("dispatcher", ["thread", "adaptive:8", "fork", "prefork:2"])
def test_curl_sends_mail_that_has_to_be_encrypted(dispatcher, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    letter = tmp_path / "letter"
    letter.write_text("Subject: text\r\n\r\ntext\r\n")
    with serving(MailConversation, dispatcher) as (host, port):
        command = [
            "curl",
            "-sS",
            "--ssl-reqd",
            "--cacert",
            authority("Authority"),
            "--mail-from",
            "a@localhost",
            "--mail-rcpt",
            "b@localhost",
        ]
        command += ["--connect-to", f"localhost:{port}:{host}:{port}", "-T", str(letter), f"smtp://localhost:{port}"]
        subprocess.run(command, timeout=LATE, check=True)


# --- the connection after it ---------------------------------------------------------------------------------------------


class UpperUnbuffered(Upper):
    rbufsize = 0


class UpperConversation(ConversationHandler):
    def handle_one_request(self):
        line = self.rfile.readline()
        if line == b"starttls\n":
            self.wfile.write(b"go\n")
            self.upgrade_tls()
        else:
            self.wfile.write(line.upper())


class UpperWithoutFiles(BaseRequestHandler):
    def handle(self):
        assert read_line(self.request) == b"starttls\n"
        self.request.sendall(b"go\n")
        self.upgrade_tls()
        while line := self.request.recv(100):
            self.request.sendall(line.upper())


class UpperWithABuffer(Upper):
    wbufsize = 1000

    def handle(self):
        assert self.rfile.readline() == b"starttls\n"
        self.wfile.write(b"go\n")  # and no flush
        self.upgrade_tls()
        while line := self.rfile.readline():
            self.wfile.write(line.upper())
            self.wfile.flush()


ALL = [Upper, UpperWithContext, UpperUnbuffered, UpperConversation, UpperWithoutFiles, UpperWithABuffer]


@pytest.mark.parametrize("handler", ALL)
@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_the_end_is_said_so_and_comes_once_through_the_hooks_with_the_encrypted_connection(dispatcher, handler):
    class Noting(Server):
        def shutdown_request(self, request):
            closed.append(("shutdown", type(request).__name__, request.fileno() >= 0))
            super().shutdown_request(request)

        def close_request(self, request):
            closed.append(("close", type(request).__name__, request.fileno() >= 0))
            super().close_request(request)
            assert request.fileno() == -1

    closed = []
    with upgrading(handler, dispatcher, kind=Noting).start() as server:
        for _ in range(3):
            closed.clear()
            with connect(server.addresses[0]) as raw, encrypted(raw) as client:
                for text in (b"one\n", b"two\n"):
                    client.sendall(text)
                    assert client.recv(100) == text.upper()
                assert client.unwrap().recv(1) == b""  # close_notify of both sides, or this raises
            until(lambda: server.stats().active == 0)
            assert closed == [("shutdown", "TLSSocket", True), ("close", "TLSSocket", True)]
        ended(server, finished=3)


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_server_that_runs_every_step_itself_ends_the_encrypted_connection(dispatcher):
    class Stepwise(Server):
        def finish_request(self, request, client_address):
            super().finish_request(request, client_address)

    with upgrading(Upper, dispatcher, kind=Stepwise).start() as server:
        with connect(server.addresses[0]) as raw, encrypted(raw) as client:
            client.sendall(b"one\n")
            assert client.recv(100) == b"ONE\n"
            client.unwrap()
        ended(server, finished=1)


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_handler_that_raises_after_it_fails_and_its_connection_is_closed(dispatcher):
    class Raises(Upper):
        def answer(self, line):
            raise ZeroDivisionError

    class Noting(Server):
        def handle_error(self, request, client_address):
            noted.append(type(request).__name__)

    noted = []
    with upgrading(Raises, dispatcher, kind=Noting).start() as server:
        with connect(server.addresses[0]) as raw, encrypted(raw) as client:
            client.sendall(b"one\n")
            assert client.recv(100) == b""
        ended(server, failed=1)
    assert noted == ["TLSSocket"]


@pytest.mark.parametrize("dispatcher", PARKING)
def test_a_conversation_still_waits_without_a_thread(dispatcher):
    with upgrading(UpperConversation, dispatcher).start() as server, contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(encrypted(stack.enter_context(connect(server.addresses[0])))) for _ in range(20)
        ]  # more than there are threads
        until(lambda: len(innards.parked(server)) == 20)
        for client in clients:
            client.sendall(b"one\ntwo\n")  # the second is in no descriptor any more
            assert read_line(client) + read_line(client) == b"ONE\nTWO\n"
        until(lambda: len(innards.parked(server)) == 20)
        server.stop()
        for client in clients:
            assert client.recv(1) == b""  # with close_notify


def test_the_certificate_of_the_client_and_a_timeout_of_the_handler_are_those_of_the_encrypted_connection():
    class Tells(Upper):
        timeout = 12.5

        def answer(self, line):
            names = dict(pair for (pair,) in self.peer_certificate["subject"])
            self.wfile.write(f"{names['commonName']} {self.connection.gettimeout()} {self.connection is self.request}\n".encode())

        def setup(self):
            super().setup()
            assert self.peer_certificate is None

    with upgrading(Tells, client="required", client_ca=authority("Clients")).start() as server, connect(server.addresses[0]) as raw:
        asked(raw)
        context = trusting()
        context.load_cert_chain(*certificate("somebody", signed_by="Clients"))
        with context.wrap_socket(raw, server_hostname="localhost") as client:
            client.sendall(b"who\n")
            assert read_line(client) == b"somebody 12.5 True\n"


def test_a_subclass_is_not_set_up_again():
    class Greets(Upper):
        speaks_first = True

        def setup(self):
            super().setup()
            self.wfile.write(b"hello\n")

    with upgrading(Greets).start() as server, connect(server.addresses[0]) as raw:
        assert read_line(raw) == b"hello\n"
        with encrypted(raw) as client:
            client.sendall(b"one\n")
            assert client.recv(100) == b"ONE\n"


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_proxy_may_be_in_front(dispatcher):
    class Where(Upper):
        def answer(self, line):
            self.wfile.write(f"{self.client_address[0]} {self.request.version()}\n".encode())

    cert, key = certificate()
    transport = Layered(TCP("127.0.0.1", 0), ProxyProtocol(trusted=["127.0.0.1/32"]), TLS(cert, key, upgrade=True))
    with Server(transport, Where, dispatcher=dispatcher).start() as server, connect(server.addresses[0]) as raw:
        raw.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.8 1000 25\r\n")
        with encrypted(raw) as client:
            client.sendall(b"where\n")
            assert read_line(client) == b"192.0.2.7 TLSv1.3\n"


# --- limits and the end of the server ------------------------------------------------------------------------------------


def client_hello():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        trusting().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("begins", [0, 100])
@pytest.mark.parametrize("handler", [Upper, UpperWithContext, UpperConversation])
@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_client_that_does_not_shake_hands_is_cut_by_the_limit_from_the_call_on(dispatcher, handler, begins):
    with upgrading(handler, dispatcher, Limits(handshake=0.3, first_byte=60)).start() as server:
        with connect(server.addresses[0]) as client:
            for _ in range(3):  # the limit is over before the call: that is no matter
                client.sendall(b"one\n")
                assert read_line(client) == b"ONE\n"
                time.sleep(0.12)
            begin = time.monotonic()
            asked(client)
            client.sendall(client_hello()[:begins])
            assert to_the_end(client) == b""
            assert 0.25 < time.monotonic() - begin < LATE
        ended(server, timed_out=1)


def test_an_old_connection_has_its_time_when_others_are_cut_meanwhile():
    clock = FakeClock()
    with upgrading(Upper, "thread", Limits(handshake=3, first_byte=1), clock=clock).start() as server:
        with connect(server.addresses[0]) as raw, connect(server.addresses[0]) as silent:
            raw.sendall(b"one\n")
            assert read_line(raw) == b"ONE\n"
            until(lambda: server.stats().active == 2)
            clock.advance(10)
            assert silent.recv(1) == b""
            asked(raw)
            with connect(server.addresses[0]) as another:
                until(lambda: server.stats().accepted == 3)
                clock.advance(1.5)
                assert another.recv(1) == b""
            with trusting().wrap_socket(raw, server_hostname="localhost") as client:
                client.sendall(b"two\n")
                assert read_line(client) == b"TWO\n"
        ended(server, finished=1, timed_out=2)


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_the_limit_holds_without_a_layer_too(dispatcher):
    with Server(TCP("127.0.0.1", 0), UpperWithContext, dispatcher=dispatcher, limits=Limits(handshake=0.3)).start() as server:
        with connect(server.addresses[0]) as client:
            asked(client)
            assert to_the_end(client) == b""
        ended(server, timed_out=1)


@pytest.mark.parametrize("dispatcher", ["thread", "adaptive:8"])
def test_a_client_that_shakes_hands_byte_by_byte_is_cut_too(dispatcher):
    with Server(TCP("127.0.0.1", 0), UpperWithContext, dispatcher=dispatcher, limits=Limits(handshake=0.3)).start() as server:
        with connect(server.addresses[0]) as client, contextlib.suppress(ConnectionError):
            asked(client)
            for each in client_hello():
                client.sendall(bytes([each]))
                time.sleep(0.02)
            raise AssertionError("it was not cut")
        ended(server, timed_out=1)


@pytest.mark.parametrize("dispatcher", [each for each in DISPATCHERS if each != "sync"])
def test_clients_that_do_not_shake_hands_hold_up_nobody(dispatcher):
    with upgrading(Upper, dispatcher).start() as server, contextlib.ExitStack() as silent:
        asked(silent.enter_context(connect(server.addresses[0])))
        with connect(server.addresses[0]) as raw, encrypted(raw) as client:
            client.sendall(b"one\n")
            assert client.recv(100) == b"ONE\n"


@pytest.mark.parametrize("limits", [Limits(first_byte=0.3), Limits(request=0.3)])
@pytest.mark.parametrize("dispatcher", ["thread", *PARKING])
def test_a_client_that_says_nothing_after_it_is_cut_and_sees_no_complete_end(dispatcher, limits):
    with upgrading(Upper, dispatcher, limits).start() as server:
        with connect(server.addresses[0]) as raw, encrypted(raw) as client, pytest.raises((ssl.SSLEOFError, ConnectionError)):
            client.recv(1)
        ended(server, timed_out=1)


def test_lines_are_bounded_after_it():
    with upgrading(Upper, limits=Limits(line=100)).start() as server:
        with connect(server.addresses[0]) as raw, encrypted(raw) as client:
            client.sendall(b"x" * 1000)
            assert to_the_end(client) == b""
        ended(server, failed=1)


@pytest.mark.parametrize("handler", [Upper, UpperConversation])
@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_drain_ends_what_waits_for_a_handshake_at_its_deadline(dispatcher, handler):
    with upgrading(handler, dispatcher, drain=0.3).start() as server:
        with connect(server.addresses[0]) as client:
            asked(client)
            report = server.stop()
            assert to_the_end(client) == b""
        assert (report.forced, report.stuck) == (1, ())
        assert server.stats().active == 0


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_drain_lets_a_handshake_end(dispatcher):
    with upgrading(Upper, dispatcher, drain=LATE).start() as server, connect(server.addresses[0]) as raw:
        asked(raw)
        server.stop(wait=False)
        with trusting().wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False) as client:
            client.sendall(b"one\n")
            assert client.recv(100) == b"ONE\n"
            client.unwrap()
    ended(server, finished=1)


# --- what ends the connection ---------------------------------------------------------------------------------------------


def reasons(caplog):
    logs.flush()
    assert [record for record in caplog.records if record.levelno > logging.DEBUG or record.exc_text] == []
    return [record.getMessage().partition("tls: ")[2] for record in caplog.records if "ended the connection" in record.getMessage()]


@pytest.mark.parametrize("handler", [Upper, UpperWithContext, UpperConversation])
@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_commands_that_were_sent_ahead_in_clear_are_refused(dispatcher, handler, caplog):
    caplog.set_level(logging.DEBUG, "socketkit")
    with upgrading(handler, dispatcher).start() as server:
        with connect(server.addresses[0]) as client:
            client.sendall(b"starttls\ninjected\n")
            assert to_the_end(client) == b"go\n"
        ended(server, failed=1)
    assert reasons(caplog) == ["the client has sent something ahead of its handshake"]


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_commands_sent_ahead_that_nobody_has_read_are_no_handshake(dispatcher, caplog):
    caplog.set_level(logging.DEBUG, "socketkit")
    with upgrading(UpperUnbuffered, dispatcher).start() as server:
        with connect(server.addresses[0]) as client:
            client.sendall(b"starttls\ninjected\n")
            assert b"INJECTED" not in to_the_end(client)
        ended(server, failed=1)
    assert reasons(caplog) == ["wrong version number"]


@pytest.mark.parametrize("handler", [Upper, UpperConversation])
@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"GET / HTTP/1.1\r\n\r\n", "http request"), (bytes(range(7, 200)), "wrong version number")],
    ids=["HTTP", "garbage"],
)
def test_a_client_that_does_not_speak_tls_gets_one_alert_and_the_log_a_reason(dispatcher, handler, data, reason, caplog):
    caplog.set_level(logging.DEBUG, "socketkit")
    with upgrading(handler, dispatcher).start() as server:
        with connect(server.addresses[0]) as client:
            asked(client)
            client.sendall(data)
            received = to_the_end(client)
            assert (received[:1], len(received)) == (bytes([21]), 7)
        ended(server, failed=1)
    assert reasons(caplog) == [reason]


@pytest.mark.parametrize("begins", [0, 100])
@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_client_that_leaves_is_aborted(dispatcher, begins, caplog):
    caplog.set_level(logging.DEBUG, "socketkit")
    with upgrading(Upper, dispatcher).start() as server:
        with connect(server.addresses[0]) as client:
            asked(client)
            client.sendall(client_hello()[:begins])
        ended(server, aborted=1)
    assert reasons(caplog) == ["the client closed the connection"]


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_an_encrypted_connection_is_not_encrypted_again(dispatcher, caplog):
    caplog.set_level(logging.DEBUG, "socketkit")
    with upgrading(Upper, dispatcher).start() as server:
        with connect(server.addresses[0]) as raw, encrypted(raw) as client:
            asked(client)
            assert to_the_end(client) == b""
        ended(server, failed=1)
    assert reasons(caplog) == ["the connection is encrypted already"]


def test_the_observers_are_told_once():
    class Observer:
        def request_failed(self, server, client_address, error):
            told.append(error)

    told = []
    cert, key = certificate()
    transport = Layered(TCP("127.0.0.1", 0), TLS(cert, key, upgrade=True))
    with Server(transport, Upper, observers=[Observer()]).start() as server:
        with connect(server.addresses[0]) as client:
            asked(client)
            client.sendall(bytes(100))
            to_the_end(client)
        ended(server, failed=1)
    assert [str(error)[:5] for error in told] == ["tls: "]


@pytest.mark.parametrize("sends", [b"starttls\n", b"starttls\ninjected\n"], ids=["garbage", "ahead"])
@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_handler_may_catch_the_error_and_cannot_go_on_in_clear(dispatcher, sends):
    class Catches(UpperConversation):
        def upgrade_tls(self):
            try:
                super().upgrade_tls()
            except UpgradeError as error:
                caught.append(str(error))
            with pytest.raises(OSError):
                self.wfile.write(b"in clear")

    caught = []
    with upgrading(Catches, dispatcher).start() as server:
        with connect(server.addresses[0]) as client:
            client.sendall(sends)
            assert read_line(client) == b"go\n"
            if sends == b"starttls\n":
                client.sendall(bytes(100))
            assert b"in clear" not in to_the_end(client)
        ended(server, failed=1)
    reason = "wrong version number" if sends == b"starttls\n" else "the client has sent something ahead of its handshake"
    assert caught == [f"the connection could not be upgraded: tls: {reason}"]


# --- without a certificate, and what cannot be composed ------------------------------------------------------------------


def test_a_handler_whose_server_has_no_certificate_is_told_what_to_do(caplog):
    with Server(TCP("127.0.0.1", 0), Upper).start() as server:
        with connect(server.addresses[0]) as client:
            asked(client)
            assert to_the_end(client) == b""
        ended(server, failed=1)
    logs.flush()
    assert "Upper calls upgrade_tls(), and its server has no certificate for that; add the layer TLS(..., upgrade=True)" in caplog.text


@pytest.mark.parametrize("context", ["cert.pem", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)], ids=["text", "client"])
def test_what_is_no_context_of_a_server_is_an_error_of_the_handler(context, caplog):
    class Wrong(Upper):
        pass

    Wrong.context = context
    with Server(TCP("127.0.0.1", 0), Wrong).start() as server:
        with connect(server.addresses[0]) as client:
            asked(client)
            assert to_the_end(client) == b""
        ended(server, failed=1)
    logs.flush()
    assert "give an ssl.SSLContext for servers" in caplog.text


def test_a_datagram_cannot_be_upgraded():
    class Datagram(BaseRequestHandler):
        def handle(self):
            self.upgrade_tls()

    with pytest.raises(IncompatibleError, match="cannot upgrade a tuple to TLS"):
        Datagram((b"", None), ("127.0.0.1", 1), None)


def test_a_server_that_would_never_encrypt_is_refused():
    def answer(request, client_address, server):
        pass

    class Standard(socketserver.StreamRequestHandler):
        pass

    for handler in (answer, Standard):
        with pytest.raises(IncompatibleError, match=r"calls upgrade_tls.*derive it from StreamRequestHandler, or leave upgrade out"):
            upgrading(handler)


def test_its_files_are_checked_when_composed():
    with pytest.raises(ConfigError, match=r"cannot read missing\.pem"):
        Server("tcp+tls://127.0.0.1:0?tls.cert=missing.pem&tls.upgrade=true", Upper)


def test_a_layer_that_no_connection_would_pass_is_refused():
    cert, key = certificate()
    transport = Layered(TCP("127.0.0.1", 0), TLS(cert, key, upgrade=True), TLS(cert, key))
    with pytest.raises(IncompatibleError, match="is after TLS, which connections pass only when their handler asks for it; put TLS last"):
        Server(transport, Upper)


def test_a_context_of_the_programs_own_may_wait_too():
    transport = Layered(TCP("127.0.0.1", 0), TLS(context=lambda: server_side(*certificate()), upgrade=True))
    with Server(transport, Upper).start() as server, connect(server.addresses[0]) as raw, encrypted(raw) as client:
        client.sendall(b"one\n")
        assert client.recv(100) == b"ONE\n"


# --- classic servers, and those of the standard library --------------------------------------------------------------------


@contextlib.contextmanager
def looping(kind, handler, dispatcher=None):
    """Serve in a thread; the block gets a server, whose `addresses` are as those of composed ones."""

    class Noting(kind):
        daemon_threads = True

        def handle_error(self, request, client_address):
            self.noted.append("error")

    if dispatcher is not None:
        Override.choose(config.dispatcher(dispatcher), Graceful(drain=2))
    try:
        with Noting(("127.0.0.1", 0), handler) as server:
            server.noted, server.addresses = [], [server.server_address]
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()
    finally:
        Override.choose()


KINDS = [
    (socketserver.TCPServer, None),
    (socketserver.ThreadingTCPServer, None),
    (classic.TCPServer, None),
    (classic.ThreadingTCPServer, None),
    *((classic.ThreadingTCPServer, dispatcher) for dispatcher in DISPATCHERS),
]
CLASSIC = pytest.mark.parametrize(("kind", "dispatcher"), KINDS, ids=[f"{kind.__module__}.{kind.__name__}-{each}" for kind, each in KINDS])


@CLASSIC
def test_classic_servers_upgrade_with_a_context(kind, dispatcher):
    with looping(kind, UpperWithContext, dispatcher) as server:
        for _ in range(3):
            with connect(server.addresses[0]) as raw, encrypted(raw) as client:
                for text in (b"one\n", b"two\n"):
                    client.sendall(text)
                    assert client.recv(100) == text.upper()
                client.unwrap()
    assert server.noted == []


@CLASSIC
@pytest.mark.parametrize("sends", [b"starttls\ninjected\n", b"starttls\n\0\0\0\0\0\0\0\0\0\0"], ids=["ahead", "garbage"])
def test_what_ends_the_connection_under_classic_servers(kind, dispatcher, sends, caplog):
    caplog.set_level(logging.DEBUG, "socketkit")
    with looping(kind, UpperWithContext, dispatcher) as server:
        with connect(server.addresses[0]) as client:
            client.sendall(sends[:9])
            if sends[9:] == b"injected\n":
                client.sendall(sends[9:])
            assert read_line(client) == b"go\n"
            client.sendall(sends[9:])
            assert to_the_end(client)[:1] in {b"", bytes([21])}
    assert server.noted == []


@pytest.mark.parametrize("kind", [socketserver.ThreadingTCPServer, classic.ThreadingTCPServer])
def test_the_timeout_of_the_handler_bounds_it_under_classic_servers(kind):
    class Impatient(UpperWithContext):
        timeout = 0.3

    with looping(kind, Impatient) as server, connect(server.addresses[0]) as client:
        asked(client)
        assert to_the_end(client) == b""
    assert server.noted == []


# --- in processes --------------------------------------------------------------------------------------------------------

SERVES = """
import os, signal, sys, threading
import socketkit.socketserver as classic
from helpers.upgrades import Upper, server_side
from socketkit import TCP, TLS, Graceful, Layered, Limits, Server

cert, key, kind = sys.argv[1:]

class ByHand(Upper):
    def upgrade_tls(self, _context):
        self.request = server_side(cert, key).wrap_socket(self.request, server_side=True)
        self.setup()

    def finish(self):
        super().finish()
        self.request.close()

kind, _, how = kind.partition(" ")
if how:
    Upper = ByHand
if kind.endswith("Server"):
    Upper.context = server_side(cert, key)
    with getattr(classic, kind)(("127.0.0.1", 0), Upper) as server:
        print("serving", server.server_address[1], os.getpid())
        signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
        server.serve_forever(0.05)
else:
    transport = Layered(TCP("127.0.0.1", 0), TLS(cert, key, upgrade=True))
    with Server(transport, Upper, dispatcher=kind, limits=Limits(handshake=0.5), lifecycle=Graceful(drain=5)) as server:
        print("serving", server.addresses[0][1], os.getpid())
        server.serve_forever()
    print(sorted(server.stats().outcomes.items()))
"""
"""A program that serves until SIGTERM, under a dispatcher or with a classic class."""


def started(program):
    """Return the address of the program's server, and the pid."""
    port, pid = program.line(r"serving (\d+) (\d+)")[0].groups()
    return ("127.0.0.1", int(port)), int(pid)


def talk_well(where):
    with connect(where) as raw, encrypted(raw) as client:
        for text in (b"one\n", b"two\n"):
            client.sendall(text)
            assert client.recv(100) == text.upper()
        client.unwrap()


def talk_ahead(where):
    with connect(where) as client:
        client.sendall(b"starttls\ninjected\n")
        assert to_the_end(client) == b"go\n"


@pytest.mark.parametrize("dispatcher", ["fork", "prefork:2", "prefork:2/fork", "prefork:1/pool:2"])
def test_processes_end_upgraded_connections_with_the_same_outcomes(dispatcher):
    with Program.python("-c", SERVES, *certificate(), dispatcher, env=with_path(TESTS)) as program:
        where, _ = started(program)
        talk_well(where)
        talk_ahead(where)
        with connect(where) as raw, encrypted(raw) as client:
            client.sendall(b"raise\n")
            assert client.recv(100) == b""
        with connect(where) as silent:
            asked(silent)
            assert to_the_end(silent) == b""
        with connect(where) as leaves:
            asked(leaves)
        assert program.stop() == 0
        assert program.line("^\\[.*")[0][0] == "[('aborted', 1), ('failed', 2), ('finished', 1), ('timed out', 1)]"
        assert program.output.count("Traceback") == 1  # the handler's own error


def test_the_forking_class_upgrades_with_a_context():
    with Program.python("-c", SERVES, *certificate(), "ForkingTCPServer", env=with_path(TESTS)) as program:
        where, _ = started(program)
        talk_well(where)
        talk_ahead(where)
        talk_well(where)
        assert program.stop() == 0
        assert len(program.output.splitlines()) == 1


@pytest.mark.parametrize("kind", ["thread", "adaptive", "fork", "ThreadingTCPServer", "ForkingTCPServer", "thread by hand", "fork by hand"])
def test_no_descriptor_is_closed_twice(kind, tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    traced = ("strace", "-f", "-o", str(trace), "-e", "trace=accept,accept4,close", sys.executable, "-u", "-c", SERVES)
    with Program(*traced, *certificate(), kind, env=with_path(TESTS)) as program:
        where, pid = started(program)
        for _ in range(2):
            with connect(where) as raw, encrypted(raw) as client:
                client.sendall(b"one\n")
                assert client.recv(100) == b"ONE\n"
        with connect(where) as raw, encrypted(raw) as client:
            client.sendall(b"raise\n")
            to_the_end(client)
        os.kill(pid, signal.SIGTERM)
        assert program.wait() == 0
    calls = trace.read_text().splitlines()
    assert sum(bool(re.search(r"accept4?\b.*= \d+$", call)) for call in calls) == 3
    assert [call for call in calls if "close" in call and "EBADF" in call] == []
