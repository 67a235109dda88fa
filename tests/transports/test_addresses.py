"""TCP and UDP on several addresses: all that a name has, all that a machine has, and what happens if one of them is not free."""

import contextlib
import errno
import socket
import sys

import pytest

from helpers.generations import Service
from helpers.support import TESTS, free_port
from socketkit import TCP, Layered, Server
from socketkit._system import activation
from socketkit.errors import ListenError
from socketkit.testing import FaultyTransport
from socketkit.testing.clients import address, ask, talk
from socketkit.testing.programs import GUARD, run, with_path
from socketkit.transports import _inet

SEVERAL = ["127.0.0.1", "127.0.0.2", "::1"]


def answer(request, client_address, server):
    if isinstance(request, tuple):
        request[1].sendto(request[0].upper(), client_address)
    else:
        request.sendall(request.recv(100).upper())


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """Give the name "several" the addresses above, and one of them twice."""
    resolve = socket.getaddrinfo

    def look_up(host, *arguments, **options):
        return [each for one in ([*SEVERAL, "::1"] if host == "several" else [host]) for each in resolve(one, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.fixture
def without_ipv6(monkeypatch):
    """Let the system be one whose IPv6 is switched off."""

    class Socket(socket.socket):
        def __init__(self, family=-1, *arguments, **options):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *arguments, **options)

    monkeypatch.setattr(socket, "socket", Socket)


# --- a name -------------------------------------------------------------------------------------------------------------


def test_a_name_means_all_its_addresses_on_one_port(recipe):
    scheme = recipe.__name__.lower()
    with Server(recipe("several", 0), answer).start() as server:
        port = server.addresses[0][1]
        assert [place[:2] for place in server.addresses] == [(host, port) for host in SEVERAL]
        assert server.urls == [f"{scheme}://127.0.0.1:{port}", f"{scheme}://127.0.0.2:{port}", f"{scheme}://[::1]:{port}"]
        for url in server.urls:
            assert (talk if recipe is TCP else ask)(address(url), b"hello") == b"HELLO"


HOSTS = """
mount --bind "$1" /etc/hosts
exec "$2" -c '
from socketkit import Server, TCP
with Server(TCP("localhost", 0), print) as server:
    print(*sorted(host for host, *_ in server.addresses), len({address[1] for address in server.addresses}))
'
"""


def test_localhost_is_127_0_0_1_and_1(tmp_path, isolated):
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    done = run(*isolated("-m"), "sh", "-ec", HOSTS, "sh", str(tmp_path / "hosts"), sys.executable, env=with_path(TESTS))
    assert done.stdout == "127.0.0.1 ::1 1\n"


@pytest.mark.parametrize("taken", SEVERAL)
def test_one_address_that_is_not_free_is_named_and_none_stays_bound(recipe, taken):
    port = free_port()
    with recipe(taken, port).open().socket, pytest.raises(ListenError) as caught:
        recipe("several", port).open_all()
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.url == recipe(taken, port).url
    for listener in recipe("several", port).open_all():  # else one of them would be in use
        listener.close()


def test_a_port_that_is_free_at_the_first_address_only_is_given_up_for_another(recipe, monkeypatch):
    with recipe("::1", 0).open().socket as taken:
        ports = iter([taken.getsockname()[1], 0])

        class Socket(socket.socket):
            def bind(self, place):
                super().bind((place[0], next(ports)) if place == ("127.0.0.1", 0) else place)

        monkeypatch.setattr(_inet, "_is_here", lambda _family: True)  # it binds too
        monkeypatch.setattr(socket, "socket", Socket)
        listeners = recipe("several", 0).open_all()
    for listener in listeners:
        listener.close()
    assert len(listeners) == 3
    assert list(ports) == []


def test_ports_are_tried_a_bounded_number_of_times(recipe, monkeypatch):
    tried = []

    class Socket(socket.socket):
        def bind(self, place):
            if self.family == socket.AF_INET6 and place[1]:
                tried.append(place)
                raise OSError(errno.EADDRINUSE, "Address already in use")
            super().bind(place)

    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(ListenError, match=r"\[::1\].* in use"):
        recipe("several", 0).open_all()
    assert len(tried) == _inet.ATTEMPTS


def test_open_listens_at_the_first_address_only(recipe):
    listener = recipe("several", 0).open()
    port = listener.address[1]
    with listener.socket, recipe("::1", port).open().socket:
        assert listener.address == ("127.0.0.1", port)


def test_what_wraps_a_transport_opens_all_of_it():
    for transport in (Layered(TCP("several", 0)), FaultyTransport(TCP("several", 0))):
        with Server(transport, answer).start() as server:
            assert [place[0] for place in server.addresses] == SEVERAL
            assert talk(server.addresses[2][:2], b"x") == b"X"


@pytest.mark.parametrize("dispatcher", ["fork", "prefork:2/sync"])
def test_every_address_is_served_by_processes_too(dispatcher, tmp_path):
    with Service(tmp_path, "pid", "tcp://*:0?v6only=true", "udp://*:0?v6only=true", dispatcher=dispatcher) as service:
        for where, connect in zip(service.places, (talk, talk, ask, ask), strict=True):
            assert int(connect((where[0].replace("0.0.0.0", "127.0.0.1").replace("::", "::1"), where[1]), b"x")) == service.pid


def test_stopping_closes_the_listeners_of_all_addresses(recipe):
    server = Server(recipe("several", 0), answer).start()
    port = server.addresses[0][1]
    server.stop()
    assert server.addresses == []
    for listener in recipe("several", port).open_all():
        listener.close()


# --- every address ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("v6only", [None, False])
def test_every_address_is_one_socket_for_both_families(recipe, v6only):
    [listener] = recipe("*", 0, v6only=v6only).open_all()
    with listener.socket as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
        assert listener.url == f"{recipe.__name__.lower()}://*:{listener.address[1]}"


def test_with_v6only_every_address_is_a_socket_for_each_family_on_one_port(recipe):
    with Server(recipe("*", 0, v6only=True), answer).start() as server:
        port = server.addresses[0][1]
        assert sorted(place[:2] for place in server.addresses) == [("0.0.0.0", port), ("::", port)]
        for host in ("127.0.0.1", "::1"):
            assert (talk if recipe is TCP else ask)((host, port), b"hello") == b"HELLO"


def test_with_v6only_ipv4_clients_have_ipv4_addresses():
    peers = []
    with Server(TCP("*", 0, v6only=True), lambda _request, peer, _server: peers.append(peer[0])).start() as server:
        talk(("127.0.0.1", server.addresses[0][1]), b"")
    assert peers == ["127.0.0.1"]


def test_a_system_without_dual_stack_sockets_gets_two(recipe, monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    listeners = recipe("", 0).open_all()
    assert sorted(listener.address[0] for listener in listeners) == ["0.0.0.0", "::"]
    assert len({listener.address[1] for listener in listeners}) == 1
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("v6only", [True, False])
def test_v6only_is_set_for_an_ipv6_address(recipe, v6only):
    with recipe("::", 0, v6only=v6only).open().socket as sock:
        assert bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)) is v6only


def test_v6only_is_refused_for_an_ipv4_address(recipe):
    with pytest.raises(ValueError, match=r"v6only has no meaning for 127\.0\.0\.1; leave it out, or give an IPv6 address, a name"):
        recipe("127.0.0.1", 0, v6only=True)


@pytest.mark.parametrize("value", ["yes", 1])
def test_v6only_is_true_false_or_none(recipe, value):
    with pytest.raises(ValueError, match="v6only must be true, false or none"):
        recipe("*", 0, v6only=value)


# --- a machine without IPv6 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "served"), [("several", ["127.0.0.1", "127.0.0.2"]), ("*", ["0.0.0.0"])])
def test_a_machine_without_ipv6_serves_ipv4_and_says_so(recipe, host, served, without_ipv6, logged):
    listeners = recipe(host, 0).open_all()
    assert [listener.address[0] for listener in listeners] == served
    for listener in listeners:
        listener.close()
    assert logged() == [f"INFO {recipe(host, 0).url}: this machine has no IPv6, so the server listens without it"]


def test_a_python_without_ipv6_serves_ipv4(recipe, monkeypatch):
    monkeypatch.setattr(socket, "has_ipv6", False)
    listeners = recipe("several", 0).open_all()
    assert [listener.address[0] for listener in listeners] == ["127.0.0.1", "127.0.0.2"]
    for listener in listeners:
        listener.close()


def test_an_ipv6_address_on_a_machine_without_ipv6_is_an_error(recipe, without_ipv6):
    with pytest.raises(ListenError, match=r"cannot listen on .*://\[::1\]:0: .*; use an address of a family that this system supports"):
        recipe("::1", 0).open_all()


SWITCHED_OFF = """
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
ip link set lo up
mount --bind "$1" /etc/hosts
exec "$2" -c '
from socketkit import Server
for url in ("tcp://localhost:0", "udp://localhost:0", "tcp://*:0"):
    with Server(url, print) as server:
        print(*server.urls)
' | sed "s/:[0-9]*$//"
"""


def test_ipv6_that_an_administrator_has_switched_off_is_not_needed(tmp_path, isolated):
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    done = run(*isolated("-m", "-n"), "sh", "-ec", SWITCHED_OFF, "sh", str(tmp_path / "hosts"), sys.executable, env=with_path(TESTS))
    assert done.stdout.splitlines() == ["tcp://127.0.0.1", "udp://127.0.0.1", "tcp://*"]


# --- handing over -------------------------------------------------------------------------------------------------------


def test_a_new_generation_takes_over_the_sockets_of_all_addresses(tmp_path):
    with Service(tmp_path, "pid", "tcp://*:0?v6only=true", "udp://*:0?v6only=true", "tcp://*:0?v6only=true") as service:
        first = service.places
        assert len(first) == 6
        for _ in range(2):
            before = service.pid
            service.restart()
            service.line(rf"^ends {before} 0 finished, 0 forced, 0 stuck")
            *_, last = service.line(r"^listens (.*)", service.output.count("listens"))
            assert [address(url) for url in last[1].split()] == first
            for (host, port), connect in zip(first, (talk, talk, ask, ask, talk, talk), strict=True):
                assert int(connect(("127.0.0.1" if host == "0.0.0.0" else "::1", port), b"x", GUARD)) == service.pid


def test_a_server_takes_over_the_sockets_of_all_addresses_from_another(recipe):
    transport = recipe("several", 0)
    with contextlib.ExitStack() as stack:
        old = [stack.enter_context(contextlib.closing(listener)) for listener in transport.open_all()]
        with activation.offering(listener.socket for listener in old):
            new = [stack.enter_context(contextlib.closing(listener)) for listener in transport.open_all()]
        assert [listener.address for listener in new] == [listener.address for listener in old]
        assert [name for name, _ in activation.estate()] == [activation.encode(transport.url + part) for part in ("", "#2", "#3")]
