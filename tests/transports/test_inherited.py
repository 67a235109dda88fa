"""Sockets that a process was started with: served as they are, refused in one sentence when they do not fit, hidden from children."""

import shutil
import signal
import socket
import ssl
import subprocess
import sys

import pytest

from helpers.support import TESTS, free_port, python
from socketkit import InheritedFD, Systemd
from socketkit.composition import config
from socketkit.testing.certificates import authority, certificate
from socketkit.testing.clients import address, ask, talk
from socketkit.testing.programs import GUARD, Program, with_path

PRELUDE = """
import os, socket, sys
from socketkit import InheritedFD, Server, Systemd, TCP, UDP, UnixDatagram, UnixStream
from socketkit.errors import ListenError
from socketkit.testing.clients import ask, talk
from helpers import innards

def put(number, sock):
    '''Leave the socket open as this descriptor, for a child too.'''
    sock.detach() if sock.fileno() == number else os.dup2(sock.fileno(), number, inheritable=True)

def passed(names, *socks, pid=None, count=None):
    '''Pass sockets by the protocol of sd_listen_fds(3), to this very process.'''
    for number, sock in enumerate(socks, 3):
        os.dup2(sock.fileno(), 100 + number)
        sock.close()
    for number in range(3, 3 + len(socks)):
        os.dup2(100 + number, number, inheritable=True)
        os.close(100 + number)
    os.environ.update(LISTEN_PID=str(pid or os.getpid()), LISTEN_FDS=str(len(socks) if count is None else count), LISTEN_FDNAMES=names)

def refused(transport):
    try:
        transport.open()
    except ListenError as error:
        return str(error)
    raise AssertionError("it was opened")

def both(request, client_address, server):
    if isinstance(request, tuple):
        request[1].sendto(request[0].upper(), client_address)
    else:
        request.sendall(request.recv(1000).upper())

def listening(family=socket.AF_INET, where=("127.0.0.1", 0)):
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind(where)
    sock.listen(5)
    return sock

def bound(family=socket.AF_INET, where=("127.0.0.1", 0)):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind(where)
    return sock
"""


# --- recipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "recipe"),
    [
        ("fd://3", InheritedFD(3)),
        ("fd://0?kind=datagram", InheritedFD(0, kind="datagram")),
        ("systemd://web.socket", Systemd("web.socket")),
        ("systemd://web?index=1&kind=datagram", Systemd("web", index=1, kind="datagram")),
    ],
)
def test_a_url_is_a_recipe(url, recipe):
    assert config.transport(url) == recipe
    assert recipe.url == url.partition("?")[0] + ("?index=1" if "index" in url else "")
    assert recipe.kind == ("datagram" if "datagram" in url else "stream")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: InheritedFD(-1), "number must be a whole number of at least 0"),
        (lambda: InheritedFD("3"), "number must be a whole number of at least 0"),
        (lambda: InheritedFD(3, kind="raw"), "kind must be 'stream' or 'datagram', not 'raw'"),
        (lambda: Systemd(""), "name must be a descriptor's name"),
        (lambda: Systemd("a:b"), "name must be a descriptor's name"),
        (lambda: Systemd("a\n"), "name must be a descriptor's name"),
        (lambda: Systemd("web", index=-1), "index must be a whole number of at least 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


# --- descriptors --------------------------------------------------------------------------------------------------------


def test_a_descriptor_is_served_with_its_real_place():
    python(
        PRELUDE
        + """
stream, datagram, six = listening(), bound(), listening(socket.AF_INET6, ("::1", 0))
ports = [sock.getsockname()[1] for sock in (stream, datagram, six)]
for number, sock in enumerate((stream, datagram, six), 20):
    put(number, sock)
    sock.close()
transports = [InheritedFD(20), InheritedFD(21, kind="datagram"), InheritedFD(22)]
with Server(transports, both) as server:
    assert server.urls == [f"tcp://127.0.0.1:{ports[0]}", f"udp://127.0.0.1:{ports[1]}", f"tcp://[::1]:{ports[2]}"]
    assert not any(os.get_inheritable(number) for number in (20, 21, 22))
    server.start()
    assert talk(server.addresses[0], b"a") == b"A"
    assert ask(server.addresses[1], b"b") == b"B"
    assert talk(server.addresses[2], b"c") == b"C"
for number in (20, 21, 22):
    try:
        os.fstat(number)
    except OSError:
        continue
    raise AssertionError(number)
"""
    )


def test_accepted_connections_do_not_delay_small_writes():
    python(
        PRELUDE
        + """
put(20, listening())
put(21, listening())
for number, nodelay in (20, True), (21, False):
    with Server(InheritedFD(number, nodelay=nodelay), lambda request, peer, server: request.sendall(
        b"%d" % bool(request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))).start() as server:
        assert talk(server.addresses[0], b"") == b"%d" % nodelay
"""
    )


@pytest.mark.parametrize(
    ("make", "transport", "sentence"),
    [
        ("None", "InheritedFD(20)", "cannot listen on fd://20: the descriptor is not open; pass a listening socket"),
        ("open(os.devnull)", "InheritedFD(20)", "cannot listen on fd://20: the descriptor is not a socket; pass a listening socket"),
        ("bound()", "InheritedFD(20)", "the inherited socket is a datagram socket, not a stream socket; pass a stream socket, or set kind=datagram"),
        ("listening()", "InheritedFD(20, kind='datagram')", "is a stream socket, not a datagram socket; pass a datagram socket, or set kind=stream"),
        ("socket.socket()", "InheritedFD(20)", "the inherited socket does not listen; call listen() before passing it on"),
        ("socket.socketpair()[0]", "InheritedFD(20)", "the inherited socket does not listen"),
        ("socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)", "InheritedFD(20)", "is a type-5 socket, not a stream socket"),
    ],
)  # fmt: skip
def test_a_descriptor_that_does_not_fit_is_refused_and_left_alone(make, transport, sentence):
    python(
        PRELUDE
        + f"""
made = {make}
if made is not None:
    os.dup2(made.fileno(), 20)
sentence = refused({transport})
assert {sentence!r} in sentence and "\\n" not in sentence, sentence
if made is not None:
    os.fstat(20)
"""
    )


def test_two_listeners_cannot_have_the_same_descriptor():
    python(
        PRELUDE
        + """
put(20, listening())
with InheritedFD(20).open().socket:
    assert "another listener of this process owns that descriptor" in refused(InheritedFD(20))
"""
    )


# --- the protocol -------------------------------------------------------------------------------------------------------


def test_sockets_are_found_by_their_names(tmp_path):
    python(
        PRELUDE
        + """
stream = listening(socket.AF_UNIX, "stream.sock")
abstract = listening(socket.AF_UNIX, "\\0socketkit-%d" % os.getpid())
passed("log:web:web.socket:log", listening(), listening(), stream, abstract)
transports = [Systemd("web.socket"), Systemd("log", index=1), Systemd("web"), Systemd("log")]
server = Server(transports, both).start()
assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & os.environ.keys()
assert not any(os.get_inheritable(number) for number in range(3, 7))
assert [listener.fileno() for listener in innards.listeners(server)] == [5, 6, 4, 3]
assert server.urls[:2] == [f"unix://stream.sock", f"unix:@socketkit-{os.getpid()}"], server.urls
for where in server.addresses:
    assert talk(where, b"a") == b"A"
server.stop()
assert os.path.exists("stream.sock")  # whoever bound it removes it
""",
        cwd=tmp_path,
    )


def test_a_datagram_socket_is_found_by_its_name(tmp_path):
    python(
        PRELUDE
        + """
passed("dns:log", bound(), bound(socket.AF_UNIX, "log.sock"))
with Server([Systemd("dns", kind="datagram"), Systemd("log", kind="datagram")], both).start() as server:
    assert ask(server.addresses[0], b"a") == b"A"
    assert server.urls[1] == "unix-dgram://log.sock"
assert os.path.exists("log.sock")
""",
        cwd=tmp_path,
    )


@pytest.mark.parametrize(
    ("names", "options", "sentence"),
    [
        ("web", "", "no free socket of that name; free sockets: web; start it by a socket unit with FileDescriptorName=dns"),
        ("", "", "free sockets: unknown;"),
        ("web:dns", "", "free sockets: unknown;"),  # two names for one descriptor: nobody knows which is right
        ("dns", "pid=1", "free sockets: none;"),
        ("dns", "count=0", "free sockets: none;"),
        ("dns", "count='two'", "free sockets: none;"),
    ],
)  # fmt: skip
def test_a_name_that_is_not_there_is_refused_with_those_that_are(names, options, sentence):
    python(
        PRELUDE
        + f"""
passed({names!r}, listening(), {options})
sentence = refused(Systemd("dns"))
assert sentence.startswith("cannot listen on systemd://dns: this process inherited no free socket"), sentence
assert {sentence!r} in sentence, sentence
assert not {{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}} & os.environ.keys()
"""
    )


def test_a_count_that_no_process_can_have_is_refused_by_name():
    python(f"""{PRELUDE}
for count in ("1" + "0" * 12, "1" + "0" * 5000):
    passed("web", listening(), count=count)
    assert "LISTEN_FDS is 1000000000000" in refused(Systemd("web"))
""")


def test_a_name_is_served_once():
    python(
        PRELUDE
        + """
passed("web", listening())
with Server(Systemd("web"), both) as server:
    assert "free sockets: none" in refused(Systemd("web"))
assert "free sockets: none" in refused(Systemd("web"))
"""
    )


def test_a_descriptor_of_the_protocol_can_be_had_by_its_number():
    python(
        PRELUDE
        + """
passed("web", listening())
with Server(InheritedFD(3), both).start() as server:
    assert talk(server.addresses[0], b"a") == b"A"
    assert "free sockets: none" in refused(Systemd("web"))
"""
    )


@pytest.mark.parametrize(
    ("make", "transport", "request_"),
    [
        ("listening()", "TCP('localhost', 0, backlog=7)", "talk"),
        ("bound()", "UDP('127.0.0.1', 0)", "ask"),
        ("listening(socket.AF_UNIX, 's')", "UnixStream('s')", "talk"),
        ("bound(socket.AF_UNIX, 's')", "UnixDatagram('s')", None),
    ],
)
def test_a_transport_that_would_bind_takes_what_was_passed_on_under_its_own_url(make, transport, request_, tmp_path):
    python(
        PRELUDE
        + f"""
from urllib.parse import quote
made, transport = {make}, {transport}
place = made.getsockname()
passed(quote(transport.url, safe=""), made)
with Server(transport, both).start() as server:
    assert (server.addresses, innards.listeners(server)[0].fileno()) == ([place], 3)
    if {request_!r}:
        assert {request_}(server.addresses[0], b"a") == b"A"
assert not isinstance(place, str) or os.path.exists(place)
if isinstance(place, str):
    os.unlink(place)
with Server(transport, both) as server:  # that was the only one: this one is its own
    assert isinstance(place, str) or server.addresses != [place]
assert not isinstance(place, str) or not os.path.exists(place)
""",
        cwd=tmp_path,
    )


def test_what_was_passed_on_under_a_url_has_to_fit():
    python(
        PRELUDE
        + """
passed("tcp%3A%2F%2F127.0.0.1%3A0", bound())
assert "is a datagram socket, not a stream socket" in refused(TCP("127.0.0.1", 0))
"""
    )


def test_what_another_server_of_the_process_has_taken_over_is_passed_on_once():
    python(f"""{PRELUDE}
from socketkit._system import activation

first, second = TCP("127.0.0.1", 0).open(), TCP("127.0.0.1", 0).open()
with activation.offering([first.socket]):
    successor = TCP("127.0.0.1", 0).open()
assert successor.address == first.address
assert [number for _, number in activation.estate()] == [successor.fileno(), second.fileno()]  # though the first is not closed yet
""")


def test_a_generation_that_starts_during_a_reload_gets_each_socket_once():
    """Or the copy that it has no use for would be told of as a listener that is gone."""
    python(f"""{PRELUDE}
from socketkit._system import activation

first = TCP("127.0.0.1", 0).open()
expected = [("tcp%3A%2F%2F127.0.0.1%3A0", first.fileno())]
with activation.offering([first.socket]):
    assert activation.estate() == expected
    successor = TCP("127.0.0.1", 0).open()
    assert activation.estate() == expected
""")


@pytest.mark.parametrize("dispatcher", ["fork", "prefork:1"])
def test_children_do_not_get_the_descriptors(dispatcher):
    python(
        PRELUDE
        + f"""
import subprocess
def look(request, peer, server):
    found = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, close_fds=False)
    request.sendall(found.stdout.encode() + repr(sorted(key for key in os.environ if key.startswith("LISTEN_"))).encode())
passed("web:other", listening(), listening())
with Server(Systemd("web"), look, dispatcher={dispatcher!r}).start() as server:
    lines = talk(server.addresses[0], b"").decode().splitlines()
*descriptors, names = lines
assert names == "[]", names
assert "4" not in descriptors[3:], lines  # 3 is what ls reads the folder with
"""
    )


# --- the command line ---------------------------------------------------------------------------------------------------

HANDLER = """
def both(request, client_address, server):
    if isinstance(request, tuple):
        request[1].sendto(request[0].upper(), client_address)
    else:
        request.sendall(request.recv(1000).upper())
"""


def test_serve_takes_an_inherited_descriptor(tmp_path):
    (tmp_path / "given.py").write_text(HANDLER)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number, place = sock.fileno(), sock.getsockname()
        command = [sys.executable, "-m", "socketkit", "serve", "given:both", "--listen", f"fd://{number}"]
        with Program(*command, pass_fds=[number], cwd=tmp_path) as program:
            assert program.serving() == [f"tcp://127.0.0.1:{place[1]}"]
            assert talk(place, b"a") == b"A"
            assert program.stop() == 0


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed")
@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_systemd_socket_activate_starts_it(kind, tmp_path):
    (tmp_path / "given.py").write_text(HANDLER)
    port = free_port()
    activate = ["systemd-socket-activate", *(["-d"] if kind == "datagram" else []), f"--listen=127.0.0.1:{port}", "--fdname=web"]
    serve = [sys.executable, "-m", "socketkit", "serve", "given:both", "--listen", f"systemd://web?kind={kind}"]
    environment = [f"--setenv={name}={value}" for name, value in with_path(TESTS).items() if name in {"PYTHONPATH", "PATH"}]
    with Program(*activate, *environment, *serve, cwd=tmp_path) as program:
        program.line("Listening on")
        where = ("127.0.0.1", port)
        assert (talk if kind == "stream" else ask)(where, b"a", timeout=GUARD) == b"A"  # which starts it
        assert [address(url) for url in program.serving()] == [where]
        assert program.stop(signal.SIGTERM) == 0


def test_a_listener_that_was_passed_on_serves_with_tls(tmp_path):
    (tmp_path / "given.py").write_text(HANDLER)
    cert, key = certificate()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        serve = ("-m", "socketkit", "serve", "given:both", "--listen", f"fd+tls://0?tls.cert={cert}&tls.key={key}")
        with Program.python(*serve, stdin=sock, cwd=tmp_path) as program:
            program.serving()
            raw = socket.create_connection(sock.getsockname(), timeout=GUARD)
            context = ssl.create_default_context(cafile=authority("Authority"))
            with context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False) as client:
                client.sendall(b"a")
                assert (client.recv(100), client.recv(100)) == (b"A", b"")
            assert program.stop() == 0


def test_a_shell_passes_standard_input_as_a_listener(tmp_path):
    (tmp_path / "given.py").write_text(HANDLER)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        process = subprocess.Popen(
            [sys.executable, "-m", "socketkit", "serve", "given:both", "--listen", "fd://0"],
            stdin=sock, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
        with process:
            assert process.stderr.readline().startswith("serving tcp://127.0.0.1:")
            assert talk(sock.getsockname(), b"a") == b"A"
            process.terminate()
            assert process.wait(GUARD) == 0
