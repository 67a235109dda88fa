"""`socketkit serve CONFIG.toml` and SIGHUP: a good file is put in place and nobody is refused meanwhile, a bad one changes nothing."""

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers.reloads import GIVEN, Service
from helpers.support import SERVE
from socketkit.testing.certificates import authority, certificate
from socketkit.testing.clients import address, ask, talk
from socketkit.testing.programs import GUARD, Program

THREE = """
[servers.a]
listen = ["tcp://127.0.0.1:0", "unix://a.sock"]
handler = "given:upper"

[servers.b]
listen = "udp://127.0.0.1:0"
handler = "given:upper"
dispatcher = "thread"

[servers.c]
listen = "tcp://127.0.0.1:0?backlog=9"
handler = "given:chat"
"""


@pytest.fixture
def three(here):
    """Return a service of three servers, and where they listen: TCP, UDP, TCP, path."""
    Path("given.py").write_text(GIVEN)
    Path("three.toml").write_text(THREE)
    with Service("three.toml") as service:
        urls = service.serving(4)
        [chat] = [match[1] for match in service.line(r"^serving (tcp\S+) .*", 2) if talks(match[1])]
        [upper] = [url for url in urls if url.startswith("tcp") and url != chat]
        [udp] = [url for url in urls if url.startswith("udp")]
        assert service.told() == ["READY=1"]
        yield service, [address(upper), address(udp), address(chat)]


def talks(url):
    """Return whether it is the server that speaks first."""
    return talk(address(url), b"").startswith(b"hello")


def refused(where):
    with pytest.raises(ConnectionRefusedError):
        talk(where, b"")


class Asking:
    """A client that asks again and again, until the block ends; what did not go well is in `failures`, which end the asking."""

    def __init__(self, ask_once, *answers):
        self.answers = answers
        self.count, self.failures, self.last = 0, [], None
        self._ask_once, self._over = ask_once, threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()

    def sees(self, answer):
        """Wait until it gets this answer."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.last == answer or self.failures, GUARD), self.last
        assert not self.failures, self.failures

    def _run(self):
        while not self._over.is_set() and not self.failures:
            try:
                answer = self._ask_once()
            except OSError as error:
                answer = error
            with self._changed:
                self.count, self.last = self.count + 1, answer
                if answer not in self.answers:
                    self.failures.append(answer)
                self._changed.notify_all()


# --- several servers ------------------------------------------------------------------------------------------------------


def test_what_has_changed_is_replaced_and_nobody_is_refused(three):
    service, (upper, udp, chat) = three
    tcp_client = Asking(lambda: talk(upper, b"Aa"), b"AA", b"aa")
    unix_client = Asking(lambda: talk("a.sock", b"Aa"), b"AA", b"aa")
    udp_client = Asking(lambda: ask(udp, b"Aa"), b"AA", b"aa")
    with tcp_client, unix_client, udp_client, socket.create_connection(chat, GUARD) as lasting:
        assert lasting.recv(10) == b"hello"
        for _ in range(5):
            for handler, answer in ("lower", b"aa"), ("upper", b"AA"):
                Path("three.toml").write_text(THREE.replace("given:upper", f"given:{handler}"))
                assert service.reload() == ["READY=1"]
                for client in tcp_client, unix_client, udp_client:
                    client.sees(answer)
                lasting.sendall(b"still")
                assert lasting.recv(10) == b"STILL"  # its server has not changed
    assert not tcp_client.failures + unix_client.failures + udp_client.failures
    assert service.stop() == 0
    assert not Path("a.sock").exists()
    assert service.output.count("serving") == 4 + 10 * 3  # c was never started again


def test_a_server_that_is_gone_is_drained_and_one_that_is_new_serves(three):
    service, (upper, _udp, chat) = three
    with socket.create_connection(chat, GUARD) as lasting:
        assert lasting.recv(10) == b"hello"
        a, _, c = re.split(r"(?=\[servers\.[bc]\])", THREE)
        assert c.startswith("[servers.c]")
        Path("three.toml").write_text(a + '[servers.new]\nlisten = "tcp://localhost:0"\nhandler = "given:lower"\n')
        assert service.reload() == ["READY=1"]
        [new] = [address(url) for url in service.serving(5)[4:]]
        assert talk(new, b"NEW") == b"new"
        assert talk(upper, b"old") == b"OLD"
        refused_at_last(chat)
        lasting.sendall(b"late")
        assert lasting.recv(10) == b"LATE"
    assert service.stop() == 0


def test_a_reload_says_what_a_removed_or_replaced_server_has_in_work_and_what_it_cuts(here):
    Path("given.py").write_text("import logging\nlogging.basicConfig(level=logging.INFO)\n" + GIVEN)
    a, c = (f"[servers.{name}]\nlisten = 'tcp://127.0.0.1:0'\nhandler = 'given:{{}}'\nlifecycle = 'graceful:500ms'\n" for name in "ac")
    Path("two.toml").write_text(a.format("upper") + c.format("chat"))
    with Service("two.toml") as service:
        [chat] = [address(url) for url in service.serving(2) if talks(url)]
        service.told()
        with socket.create_connection(chat, GUARD) as lasting:
            assert lasting.recv(10) == b"hello"
            Path("two.toml").write_text(a.format("lower"))
            service.reload()
            service.line("servers.a is replaced: no request in work")
            service.line("servers.c is removed: 1 request in work, up to 0.5 s")
            service.line("servers.c: stopped at the deadline: 0 finished, 1 forced, 0 stuck")
        assert service.stop() == 0


def refused_at_last(where):
    while True:
        try:
            talk(where, b"")
        except ConnectionError:
            return


def test_a_running_request_is_finished_by_the_server_that_took_it(three):
    service, (_upper, _udp, chat) = three
    with socket.create_connection(chat, GUARD) as early:
        assert early.recv(10) == b"hello"
        Path("three.toml").write_text(THREE.replace("given:chat", "given:lower"))
        assert service.reload() == ["READY=1"]
        with Asking(lambda: talk(chat, b"Aa"), b"helloAA", b"aa") as client:
            client.sees(b"aa")
        early.sendall(b"early")
        assert early.recv(10) == b"EARLY"
    assert service.stop() == 0


BAD = {
    "not TOML": ("[servers.a", "is not TOML"),
    "an unknown dispatcher": (THREE.replace('"thread"', '"thraed"'), "servers.b.dispatcher: no dispatcher named 'thraed', did you mean 'thread'"),
    "a missing handler": (THREE.replace("given:chat", "given:nowhere"), "servers.c.handler: .*nowhere"),
    "two faults": (THREE.replace("given:", "taken:"), "servers.a.handler: .*; servers.b.handler: .*; servers.c.handler: "),
    "a pairing that cannot be": (THREE.replace('"thread"', '"asyncio:loop=uvloopy"'), "servers.b.dispatcher"),
    "no server": ("", r"has no \[servers.NAME\] table"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_changes_nothing(bad, three):
    service, (upper, udp, _chat) = three
    content, why = BAD[bad]
    with Asking(lambda: talk(upper, b"Aa"), b"AA") as tcp_client, Asking(lambda: ask(udp, b"Aa"), b"AA") as udp_client:
        Path("three.toml").write_text(content)
        ready, status = service.reload()
        assert ready == "READY=1"
        assert re.match(f"STATUS=reload failed: .*{why}", status), status
        [logged] = service.line("reload failed; nothing changes: (.*)")
        assert status == f"STATUS=reload failed: {logged[1]}"
    assert not tcp_client.failures + udp_client.failures
    Path("three.toml").unlink()
    assert service.reload()[1].startswith("STATUS=reload failed: three.toml cannot be read")
    Path("three.toml").write_text(THREE.replace("given:upper", "given:lower"))
    assert service.reload() == ["READY=1"]  # and a good one is taken afterwards
    with Asking(lambda: talk(upper, b"Aa"), b"AA", b"aa") as client:
        client.sees(b"aa")
    assert service.stop() == 0


def test_a_place_that_is_taken_changes_nothing(three):
    service, (upper, udp, chat) = three
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        Path("three.toml").write_text(
            THREE.replace("given:upper", "given:lower") + f'[servers.d]\nlisten = "{url}"\nhandler = "given:lower"\n'
        )
        assert service.reload()[1].startswith(f"STATUS=reload failed: cannot listen on {url}: Address already in use")
        assert [talk(upper, b"Aa"), ask(udp, b"Aa"), talk("a.sock", b"Aa"), talk(chat, b"Aa")] == [b"AA", b"AA", b"AA", b"helloAA"]
    assert service.reload() == ["READY=1"]
    with Asking(lambda: talk("a.sock", b"Aa"), b"AA", b"aa") as client:
        client.sees(b"aa")
    assert service.stop() == 0
    assert not Path("a.sock").exists()


def test_a_file_that_has_not_changed_touches_nothing(three):
    service, _ = three
    Path("three.toml").write_text("# a comment\n" + THREE)
    assert service.reload() == ["READY=1"]
    service.line("reload found no changes")
    assert service.output.count("serving") == 4
    assert service.stop() == 0


def test_the_servers_that_were_named_are_the_ones_that_are_reloaded(here):
    Path("given.py").write_text(GIVEN)
    Path("three.toml").write_text(THREE)
    with Service("three.toml", "a", "b") as service:
        assert len(service.serving(3)) == 3
        assert service.told() == ["READY=1"]
        Path("three.toml").write_text(THREE.replace("given:chat", "given:nowhere"))
        assert service.reload() == ["READY=1"]
        service.line("reload found no changes")
        Path("three.toml").write_text(THREE.replace("servers.b", "servers.d"))
        assert "servers.b: is not in three.toml" in service.reload()[1]
        assert service.stop() == 0


def test_the_watchdog_is_pinged_by_those_that_are_served_now(here):
    Path("given.py").write_text(GIVEN)
    Path("three.toml").write_text(THREE)
    with Service("three.toml", WATCHDOG_USEC="200000") as service:
        service.serving(4)
        assert service.told() == ["READY=1"]
        for handler in "lower", "upper", "lower":
            Path("three.toml").write_text(THREE.replace("given:upper", f"given:{handler}"))
            assert service.reload() == ["READY=1"]
            for _ in range(4):
                assert service.told() == ["WATCHDOG=1"]
        assert service.stop() == 0


def test_several_servers_can_be_restarted_after_a_reload(three):
    service, (upper, _udp, _chat) = three
    Path("three.toml").write_text(THREE.replace("given:upper", "given:lower"))
    assert service.reload() == ["READY=1"]
    service.send_signal(signal.SIGUSR2)
    ready, main = service.reloaded()
    assert (ready, main.partition("=")[0]) == ("READY=1", "MAINPID")
    assert service.wait() == 0
    assert talk(upper, b"Aa") == b"aa"
    assert talk("a.sock", b"Aa") == b"aa"


@pytest.mark.clients
def test_wrk_is_answered_while_the_file_is_bad_and_while_it_is_replaced(here):
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    Path("given.py").write_text(GIVEN)
    several = '[servers.web]\nlisten = "tcp://127.0.0.1:0"\nhandler = "given:Http"\ndispatcher = "{}"\n' + THREE
    Path("web.toml").write_text(several.format("adaptive"))
    with Service("web.toml") as service:
        service.serving(5)
        assert service.told() == ["READY=1"]
        [web] = [url for url in service.serving(5) if url.startswith("tcp") and b"400" in talk(address(url), b"nonsense here now\r\n\r\n")]
        client = subprocess.Popen(
            ["wrk", "-t", "1", "-c", "16", "-d", "6s", web.replace("tcp:", "http:")], stdout=subprocess.PIPE, text=True
        )
        for number in range(10):
            Path("web.toml").write_text(several.format(f"pool:{number + 2}"))
            assert service.reload() == ["READY=1"]
            Path("web.toml").write_text("this is no TOML")
            assert "is not TOML" in service.reload()[1]
        said = client.communicate(timeout=GUARD)[0]
        assert client.returncode == 0
        assert "Socket errors" not in said, said
        assert "Non-2xx" not in said, said
        assert int(re.search(r"(\d+) requests in", said)[1]) > 1000
        assert service.stop() == 0


# --- a single server ------------------------------------------------------------------------------------------------------

ONE = '[servers.one]\nlisten = "tcp://127.0.0.1:0"\nhandler = "given:pid"\ndispatcher = "{}"\n'


@pytest.mark.parametrize("dispatcher", ["adaptive", "prefork:1"])
def test_a_single_server_is_reloaded_by_a_new_generation(dispatcher, here):
    Path("given.py").write_text(GIVEN)
    Path("one.toml").write_text(ONE.format("thread"))
    with Service("one.toml") as service:
        [url] = service.serving()
        assert service.told() == ["READY=1"]
        assert int(talk(address(url), b"x")) == service.pid
        Path("one.toml").write_text(ONE.format("thraed"))
        assert service.reload()[1].startswith("STATUS=reload failed: servers.one.dispatcher: no dispatcher named 'thraed'")
        Path("one.toml").write_text(ONE.format("thread"))
        assert service.reload() == ["READY=1"]
        service.line("reload found no changes")
        assert int(talk(address(url), b"x")) == service.pid
        Path("one.toml").write_text(ONE.format(dispatcher))
        with Asking(lambda: bool(talk(address(url), b"x")), True) as client:
            service.send_signal(signal.SIGHUP)
            assert service.told()[0] == "RELOADING=1"
            assert service.told()[0] == "RELOADING=1"  # the restart says so as well
            ready, main = service.told()
            assert (ready, main.partition("=")[0]) == ("READY=1", "MAINPID")
            assert service.wait() == 0
        assert client.count
        assert not client.failures
        assert service.serving(2) == [url, url]
        service.line(rf"\({dispatcher.partition(':')[0]}")


def test_a_single_server_that_may_not_restart_says_so(here):
    Path("given.py").write_text(GIVEN)
    Path("one.toml").write_text(ONE.format("thread") + 'lifecycle = "graceful:restart=false"\n')
    with Service("one.toml") as service:
        [url] = service.serving()
        assert service.told() == ["READY=1"]
        Path("one.toml").write_text(ONE.format("pool:2") + 'lifecycle = "graceful:restart=false"\n')
        assert "the change needs a restart" in service.reload()[1]
        assert int(talk(address(url), b"x")) == service.pid
        assert service.stop() == 0


def test_a_handler_on_the_command_line_has_nothing_to_reload_so_the_end_of_its_terminal_stops_it(here):
    with Program(*SERVE, "handlers:Told", "--listen", "tcp://127.0.0.1:0") as program:
        [url] = program.serving()
        with socket.create_connection(address(url), timeout=10) as client:
            client.sendall(b"a")
            program.line("begun")
            program.send_signal(signal.SIGHUP)
            client.sendall(b"b\n")
            assert client.makefile("rb").read() == b"AB\n"  # it drains
        assert program.wait() == 0


def test_nohup_keeps_its_word(here):
    ignore = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    with Program(sys.executable, "-c", ignore, *SERVE[1:], "handlers:Upper", "--listen", "tcp://127.0.0.1:0") as program:
        [url] = program.serving()
        program.send_signal(signal.SIGHUP)
        assert talk(address(url), b"a\n") == b"A\n"
        assert program.stop() == 0
        assert "SIGHUP" not in program.output


# --- certificates ---------------------------------------------------------------------------------------------------------

ENCRYPTED = """
[servers.{name}]
listen = "tls://127.0.0.1:0?tls.cert=cert.pem&tls.key=cert.key&tls.reload=none"
handler = "given:chat"
dispatcher = "{dispatcher}"
lifecycle = "graceful:restart=false"
"""


def put(issue):
    """Put a certificate in place, and return its serial number."""
    cert, key = certificate(issue=issue)
    shutil.copy(cert, "cert.pem")
    shutil.copy(key, "cert.key")
    os.chmod("cert.key", 0o600)
    return ssl._ssl._test_decode_cert(cert)["serialNumber"]


def connect(url):
    raw = socket.create_connection(address(url), timeout=GUARD)
    return ssl.create_default_context(cafile=authority("Authority")).wrap_socket(raw, server_hostname="localhost")


def presented(url):
    """Shake hands twenty times, so that each worker does; return the serial numbers of the certificates."""
    found = set()
    for _ in range(20):
        with connect(url) as client:
            found.add(client.getpeercert()["serialNumber"])
    return found


@pytest.mark.parametrize("dispatcher", ["adaptive", "asyncio", "fork", "prefork:2", "prefork:2/fork"])
@pytest.mark.parametrize("names", [["one"], ["one", "two"]], ids=["single", "several"])
def test_certificates_are_read_again_although_the_file_has_not_changed(names, dispatcher, here):
    Path("given.py").write_text(GIVEN)
    Path("web.toml").write_text("".join(ENCRYPTED.format(name=name, dispatcher=dispatcher) for name in names))
    before = put(0)
    with Service("web.toml") as service:
        urls = service.serving(len(names))
        assert service.told() == ["READY=1"]
        assert [presented(url) for url in urls] == [{before}] * len(names)
        with connect(urls[0]) as early:
            assert early.recv(10) == b"hello"
            now = put(1)
            assert [presented(url) for url in urls] == [{before}] * len(names)
            assert service.reload() == ["READY=1"]
            for url in urls:
                end = time.monotonic() + GUARD
                while presented(url) != {now}:
                    assert time.monotonic() < end
            early.sendall(b"still")
            assert early.recv(10) == b"STILL"
        assert service.stop() == 0


def test_certificates_that_cannot_be_used_fail_the_reload_and_change_nothing(here):
    Path("given.py").write_text(GIVEN)
    Path("web.toml").write_text(ENCRYPTED.format(name="one", dispatcher="prefork:2"))
    before = put(0)
    with Service("web.toml") as service:
        [url] = service.serving()
        assert service.told() == ["READY=1"]
        shutil.copy(certificate(issue=1)[0], "cert.pem")
        assert "cannot use cert.pem and cert.key: key values mismatch" in service.reload()[1]
        assert presented(url) == {before}
        assert service.stop() == 0
