"""The layer `proxy` and the proxies and clients of other people: curl, HAProxy and nginx."""

import shutil
import signal
import socket
import ssl
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers import snippets
from helpers.dispatchers import EVERY
from helpers.support import ROOT, TESTS, free_port
from socketkit.testing.clients import address
from socketkit.testing.programs import Program, run, with_path

pytestmark = pytest.mark.clients

PAGE = ROOT / "docs/how-to/behind-a-proxy.md"
HERE = TESTS / "layers"
BLOCKING = [name for name in EVERY if name != "asyncio"]


def needs(*programs):
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)}: not installed")


STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
needs_nginx = pytest.mark.skipif(
    shutil.which("nginx") is None or not STREAM_MODULE.exists(), reason="nginx, or its stream module: not installed"
)


@contextmanager
def serving(handler, url, dispatcher="thread"):
    command = ("-m", "socketkit", "serve", f"handlers:{handler}", "--listen", url, "--dispatcher", dispatcher)
    with Program.python(*command, env=with_path(HERE)) as program:
        [served] = program.serving()
        yield served
        assert program.stop() == 0, program.output
    assert "Traceback" not in program.output


@contextmanager
def haproxy(config, path):
    path.write_text(config)
    run("haproxy", "-c", "-f", str(path))
    with Program("haproxy", "-db", "-f", str(path)) as program:
        yield program


@contextmanager
def nginx(config, path):
    """Run nginx in one process in the foreground, with all its files in the folder of its configuration."""
    path.write_text(config)
    rest = f"daemon off; master_process off; pid {path.parent}/nginx.pid; error_log stderr notice;"
    with Program("nginx", "-e", "stderr", "-c", str(path), "-g", rest) as program:
        program.line(r"start worker process|using the \"\w+\" event method")
        yield program


def connected(where):
    """Connect as soon as somebody listens: HAProxy does not say when it does."""
    end = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(where, timeout=10)
        except ConnectionRefusedError:
            assert time.monotonic() < end, f"nobody listens on {where}"
            time.sleep(0.02)


def ask(client):
    """Send a line; return the line that answers it, and the client's own address."""
    own = client.getsockname()
    client.sendall(b"who?\n")  # and no end: nginx would close both ways
    with client.makefile("r") as file:
        return file.readline(), own


CONFIG = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s

listen all
    bind {bind}
    server one {server}
"""


# --- curl -------------------------------------------------------------------------------------------------------------


@needs("curl")
@pytest.mark.parametrize("dispatcher", BLOCKING)
def test_curl_sends_its_address(dispatcher):
    with serving("TellPage", "tcp+proxy://127.0.0.1:0?proxy.trusted=127.0.0.1/32", dispatcher) as url:
        host, port = address(url)
        base = f"http://{host}:{port}"
        fixed = ("-sSf", "--max-time", "20", "-w", "%{local_port}\n", "--haproxy-protocol")
        told, own_port = run("curl", *fixed, f"{base}/one").stdout.splitlines()
        twice = run("curl", *fixed, f"{base}/one", f"{base}/two").stdout.splitlines()
    assert told.startswith(f"('127.0.0.1', {own_port}) via ('127.0.0.1', {own_port}), ProxyHeader(version=1, ")
    assert f"destination=('127.0.0.1', {port})" in told
    assert (len(twice), twice[0], twice[1]) == (4, twice[2], twice[3])  # a connection that is kept has one header


@needs("curl")
def test_curl_without_a_header_gets_nothing():
    with serving("TellPage", "tcp+proxy://127.0.0.1:0?proxy.trusted=127.0.0.1/32") as url:
        host, port = address(url)
        result = run("sh", "-c", f"curl -sS --max-time 20 http://{host}:{port}/; echo code $?").stdout
    assert result in {"code 52\n", "code 56\n"}  # an empty reply, or a reset


# --- systemd ----------------------------------------------------------------------------------------------------------


@needs("systemd-socket-activate", "curl")
def test_the_first_client_of_an_activated_socket_is_known_by_its_header():
    port = free_port()
    activate = (
        "systemd-socket-activate",
        f"--listen=127.0.0.1:{port}",
        "--fdname=web",
        f"--setenv=PYTHONPATH={with_path(HERE)['PYTHONPATH']}",
    )
    serve = (sys.executable, "-m", "socketkit", "serve", "handlers:TellPage", "--listen", "systemd+proxy://web?proxy.trusted=127.0.0.1/32")
    with Program(*activate, *serve) as program:
        program.line("Listening on")
        command = ("curl", "-sSf", "--max-time", "20", "-w", "%{local_port}\n", "--haproxy-protocol", f"http://127.0.0.1:{port}/")
        told, own_port = run(*command).stdout.splitlines()  # which starts it
        program.serving()
        assert program.stop(signal.SIGTERM) == 0, program.output
    assert told.startswith(f"('127.0.0.1', {own_port}) via ('127.0.0.1', {own_port}), ProxyHeader(version=1, ")


# --- HAProxy ----------------------------------------------------------------------------------------------------------


@needs("haproxy")
@pytest.mark.parametrize(("option", "version"), [("send-proxy", 1), ("send-proxy-v2", 2)])
@pytest.mark.parametrize("dispatcher", BLOCKING)
def test_haproxy_sends_the_client(dispatcher, option, version, tmp_path):
    with serving("Tell", "tcp+proxy://127.0.0.1:0?proxy.trusted=127.0.0.1/32", dispatcher) as url:
        host, port = address(url)
        front = free_port()
        with haproxy(CONFIG.format(bind=f"127.0.0.1:{front}", server=f"{host}:{port} {option}"), tmp_path / "haproxy.cfg"):
            with connected(("127.0.0.1", front)) as client:
                told, own = ask(client)
    assert told.startswith(f"{own!r} via ('127.0.0.1', ")
    assert f"ProxyHeader(version={version}, command='proxy', kind='stream', source={own!r}, destination=('127.0.0.1', {front})" in told


@needs("haproxy")
@pytest.mark.parametrize(("option", "version"), [("send-proxy", 1), ("send-proxy-v2", 2)])
def test_haproxy_sends_a_client_over_ipv6(option, version, tmp_path):
    with serving("Tell", "tcp+proxy://127.0.0.1:0?proxy.trusted=127.0.0.1/32") as url:
        host, port = address(url)
        front = free_port()
        with haproxy(CONFIG.format(bind=f"[::1]:{front}", server=f"{host}:{port} {option}"), tmp_path / "haproxy.cfg"):
            with connected(("::1", front)) as client:
                told, own = ask(client)
    assert told.startswith(f"{own!r} via ('127.0.0.1', ")
    assert f"version={version}" in told


@needs("haproxy")
def test_haproxy_sends_the_client_over_a_unix_socket(tmp_path):
    with serving("Tell", f"unix+proxy://{tmp_path}/who?mode=0o666&proxy.trusted=unix"):
        front = free_port()
        server = f"unix@{tmp_path}/who send-proxy-v2"
        with haproxy(CONFIG.format(bind=f"127.0.0.1:{front}", server=server), tmp_path / "haproxy.cfg"):
            with connected(("127.0.0.1", front)) as client:
                told, own = ask(client)
    assert told.startswith(f"{own!r} via '', ProxyHeader(version=2, ")


@needs("haproxy", "openssl")
def test_haproxy_sends_what_it_knows_about_tls(tmp_path):
    subject = ("-subj", "/CN=client.example", "-addext", "subjectAltName=DNS:server.example")
    pair = ("-keyout", f"{tmp_path}/key", "-out", f"{tmp_path}/cert")
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *pair, *subject)
    (tmp_path / "both").write_text((tmp_path / "cert").read_text() + (tmp_path / "key").read_text())
    trust = ssl.create_default_context(cafile=tmp_path / "cert")
    trust.load_cert_chain(tmp_path / "both")
    trust.set_alpn_protocols(["h2"])
    options = "crc32c,unique-id,authority,ssl,cert-cn,ssl-cipher,cert-sig,cert-key"
    front = free_port()
    bind = f"127.0.0.1:{front} ssl crt {tmp_path}/both ca-file {tmp_path}/cert verify required alpn h2\n    unique-id-format id-%rt"
    with serving("Tell", "tcp+proxy://127.0.0.1:0?proxy.trusted=127.0.0.1/32") as url:
        host, port = address(url)
        config = CONFIG.format(bind=bind, server=f"{host}:{port} send-proxy-v2 proxy-v2-options {options}")
        with haproxy(config, tmp_path / "haproxy.cfg"), connected(("127.0.0.1", front)) as plain:
            with trust.wrap_socket(plain, server_hostname="server.example") as client:
                own, version, (cipher, *_) = client.getsockname(), client.version(), client.cipher()
                told, _ = ask(client)
    assert told.startswith(f"{own!r} via ('127.0.0.1', ")
    expected = ("alpn=b'h2'", "authority='server.example'", "unique_id=b'id-0", "ssl=ProxySSL(client=7, verify=0", f"version='{version}'")
    inside = ("common_name='client.example'", f"cipher='{cipher}'", "signature_algorithm='RSA-SHA256'", "key_algorithm='RSA2048'")
    assert [each for each in (*expected, *inside) if each not in told] == [], told


# --- the page ---------------------------------------------------------------------------------------------------------


def of_the_page(name):
    """Return the block of the page that is saved as the file of that name."""
    [block] = [block for block in snippets.blocks(PAGE, "text", "nginx") if block.file == name]
    return block.text


@pytest.fixture
def page(tmp_path):
    """Serve what the page serves; give the folder, with the page's files."""
    snippets.ports.clear()
    snippets.save(PAGE, tmp_path)
    with Program.python("-m", "socketkit", "serve", "servers.toml", cwd=tmp_path, env=with_path(tmp_path)) as program:
        program.serving()
        yield tmp_path
        assert program.stop() == 0, program.output
    assert "Traceback" not in program.output


@needs("haproxy")
def test_the_page_s_haproxy_configuration_works(page):
    with haproxy(of_the_page("haproxy.cfg"), page / "haproxy.cfg"):
        with connected(("127.0.0.1", int(snippets.ports["9002"]))) as client:
            told, (host, port) = ask(client)
    assert told == f"{host} {port} by way of 127.0.0.1\n"


@needs_nginx
def test_the_page_s_nginx_configuration_works(page):
    with nginx(of_the_page("nginx.conf"), page / "nginx.conf"):
        with connected(("127.0.0.1", int(snippets.ports["9003"]))) as client:
            told, (host, port) = ask(client)
    assert told == f"{host} {port} by way of 127.0.0.1\n"


@needs_nginx
def test_nginx_sends_the_client_over_a_unix_socket(tmp_path):
    snippets.ports.clear()
    config = of_the_page("nginx.conf").replace(f"proxy_pass 127.0.0.1:{snippets.ports['9001']}", f"proxy_pass unix:{tmp_path}/who")
    with serving("Tell", f"unix+proxy://{tmp_path}/who?mode=0o666&proxy.trusted=unix"), nginx(config, tmp_path / "nginx.conf"):
        with connected(("127.0.0.1", int(snippets.ports["9003"]))) as client:
            told, own = ask(client)
    assert told.startswith(f"{own!r} via '', ProxyHeader(version=1, ")
