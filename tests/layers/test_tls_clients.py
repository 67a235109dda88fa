"""The layer `tls` and the clients of other people: curl, openssl, and systemd's socket activation."""

import shutil
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import contextmanager

import pytest

from helpers.dispatchers import EVERY
from helpers.support import TESTS, free_port
from socketkit.testing.certificates import authority, certificate
from socketkit.testing.clients import address
from socketkit.testing.programs import GUARD, Program, run, with_path

pytestmark = pytest.mark.clients

HERE = TESTS / "layers"
DISPATCHERS = [*EVERY, "prefork:2/pool", "prefork:2/fork"]


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program}: not installed")


def listen(place):
    cert, key = certificate()
    return f"{place}?tls.cert={cert}&tls.key={key}"


@contextmanager
def serving(handler, dispatcher):
    command = ("-m", "socketkit", "serve", f"handlers:{handler}", "--listen", listen("tls://127.0.0.1:0"), "--dispatcher", dispatcher)
    with Program.python(*command, env=with_path(HERE)) as program:
        [url] = program.serving()
        yield address(url)
        assert program.stop() == 0, program.output
    assert "Traceback" not in program.output


def ask(where, context, session=None):
    """Send a line; return the answer, the session to resume, and whether the given one was resumed."""
    with (
        socket.create_connection(where, timeout=GUARD) as raw,
        context.wrap_socket(raw, server_hostname="localhost", session=session) as client,
    ):
        client.sendall(b"text\n")
        return client.recv(100), client.session, client.session_reused


def trusting():
    return ssl.create_default_context(cafile=authority("Authority"))


# --- curl -------------------------------------------------------------------------------------------------------------


@needs("curl")
@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_curl_makes_two_requests_on_one_connection(dispatcher):
    with serving("Page", dispatcher) as (_, port):
        url = f"https://localhost:{port}/"
        fixed = ("-sS", "--fail", "--ipv4", "--http1.1", "--max-time", "20", "--cacert", authority("Authority"), "-w", " %{num_connects}\n")
        assert run("curl", *fixed, url, url).stdout == "page 1\npage 0\n"


# --- openssl ----------------------------------------------------------------------------------------------------------


def s_client(where, *words):
    command = ["openssl", "s_client", "-connect", f"{where[0]}:{where[1]}", "-CAfile", authority("Authority"), *words]
    return subprocess.run(command, input=b"", capture_output=True, timeout=GUARD, check=False)


@pytest.mark.parametrize("dispatcher", ["adaptive", "fork", "prefork:4", "prefork:4/fork"])
def test_openssl_resumes_its_session_whichever_process_it_comes_to(dispatcher):
    with serving("Upper", dispatcher) as where:
        said = s_client(where, "-tls1_2", "-reconnect").stdout.decode()
        began = [line.partition(",")[0] for line in said.splitlines() if line.startswith(("New,", "Reused,"))]
        assert began == ["New", *["Reused"] * 5]


@pytest.mark.parametrize("dispatcher", ["adaptive", "fork", "prefork:4", "prefork:4/fork"])
def test_a_ticket_is_good_in_every_process(dispatcher):
    context = trusting()
    with serving("Upper", dispatcher) as where:
        _, session, reused = ask(where, context)
        assert not reused
        assert [ask(where, context, session)[::2] for _ in range(8)] == [(b"TEXT\n", True)] * 8


@pytest.mark.parametrize(("version", "alert"), [("-tls1_1", b"alert protocol version"), ("-tls1_2", b""), ("-tls1_3", b"")])
def test_openssl_is_refused_with_an_old_version(version, alert):
    with serving("Upper", "adaptive") as where:
        ended = s_client(where, version, "-cipher", "DEFAULT@SECLEVEL=0")  # otherwise it would not even try 1.1
    assert ended.returncode == bool(alert)
    assert alert in ended.stderr


# --- dnsperf ----------------------------------------------------------------------------------------------------------


@needs("dnsperf")
def test_dnsperf_is_answered_over_tls(tmp_path):
    (tmp_path / "queries").write_text("example.com A\n")
    with serving("Dot", "adaptive") as (host, port):
        said = run("dnsperf", "-m", "dot", "-s", host, "-p", str(port), "-d", str(tmp_path / "queries"), "-n", "500", "-c", "4").stdout
    assert "NOERROR 500 (100.00%)" in said, said


# --- systemd ----------------------------------------------------------------------------------------------------------


@needs("systemd-socket-activate")
def test_the_first_client_of_an_activated_socket_shakes_hands():
    port = free_port()
    activate = (
        "systemd-socket-activate",
        f"--listen=127.0.0.1:{port}",
        "--fdname=web",
        f"--setenv=PYTHONPATH={with_path(HERE)['PYTHONPATH']}",
    )
    serve = (sys.executable, "-m", "socketkit", "serve", "handlers:Upper", "--listen", listen("systemd+tls://web"))
    with Program(*activate, *serve) as program:
        program.line("Listening on")
        assert ask(("127.0.0.1", port), trusting())[0] == b"TEXT\n"  # which starts it
        program.serving()
        assert program.stop(signal.SIGTERM) == 0, program.output
