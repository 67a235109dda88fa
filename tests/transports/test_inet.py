"""TCP and UDP: where they listen, with which options, and what they say when they cannot."""

import contextlib
import errno
import socket
from pathlib import Path

import pytest

from helpers.support import python
from socketkit import TCP, UDP
from socketkit.composition import config
from socketkit.errors import ListenError


@pytest.fixture
def opened():
    listeners = []

    def open_(recipe):
        listeners.append(recipe.open())
        return listeners[-1]

    yield open_
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("localhost", None)], ids=["v4", "v6", "name"]
)
def test_the_family_follows_from_the_host(opened, recipe, host, family):
    listener = opened(recipe(host, 0))
    assert family is None or listener.socket.family == family
    assert listener.address[1] != 0


@pytest.mark.parametrize("host", ["", "*"])
def test_an_empty_host_is_every_address_of_both_families(opened, recipe, host):
    listener = opened(recipe(host, 0))
    assert listener.socket.family == socket.AF_INET6
    assert listener.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
    assert listener.url.endswith(f"://*:{listener.address[1]}")


def test_the_url_of_a_listener_has_its_real_port(opened, recipe):
    listener = opened(recipe("::1", 0))
    assert listener.url == f"{recipe.__name__.lower()}://[::1]:{listener.address[1]}"


def test_the_url_of_a_name_has_the_address_that_was_bound(opened, recipe):
    listener = opened(recipe("localhost", 0))
    host, port = listener.address[:2]
    assert listener.url == f"{recipe.__name__.lower()}://{f'[{host}]' if ':' in host else host}:{port}"


def link_local():
    """Return the scopes of a link-local address of this machine, and the address; None if it has none. Source: proc(5), if_inet6."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            packed, number, _, scope, flags, name = line.split()
            if scope == "20" and not int(flags, 16) & 0x48:  # IFA_F_DADFAILED, IFA_F_TENTATIVE
                return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(packed)), name, str(int(number, 16))
    return None


@pytest.mark.skipif(link_local() is None, reason="needs a link-local address")
def test_the_url_of_an_address_with_a_scope_can_be_typed_again(opened, recipe):
    host, name, number = link_local()
    scheme = recipe.__name__.lower()
    for scope in (name, number, f"25{name}"):
        listener = opened(config.transport(f"{scheme}://[{host}%{scope}]:0"))
        assert listener.address[3] == int(number)
        again = config.transport(listener.url)
        assert (again.host, again.port) == (f"{host}%{name}", listener.address[1])


def test_accept_never_blocks_and_a_connection_always_does(opened):
    listener = opened(TCP("127.0.0.1", 0))
    with pytest.raises(BlockingIOError):
        listener.accept()
    with socket.create_connection(listener.address) as client:
        socket.setdefaulttimeout(7)
        try:
            connection, peer = listener.accept()
        finally:
            socket.setdefaulttimeout(None)
        with connection:
            assert connection.gettimeout() is None
            assert peer == client.getsockname()


def test_small_writes_go_out_at_once_unless_told_otherwise(opened):
    for nodelay in (True, False):
        listener = opened(TCP("127.0.0.1", 0, nodelay=nodelay))
        with socket.create_connection(listener.address), listener.accept()[0] as connection:
            assert bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay


@pytest.mark.parametrize("size", [0, 1, 8193, 65507])
def test_a_datagram_arrives_whole_also_an_empty_one(opened, size):
    listener = opened(UDP("127.0.0.1", 0))
    with pytest.raises(BlockingIOError):
        listener.accept()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x" * size, listener.address)
        (data, answer), peer = listener.accept()
        assert len(data) == size
        answer.sendto(b"back", client.getsockname())
        assert client.recv(10) == b"back"
    assert peer[0] == "127.0.0.1"


def test_a_port_in_use_is_one_sentence_with_a_remedy(opened, recipe):
    taken = opened(recipe("127.0.0.1", 0))
    with pytest.raises(ListenError) as caught:
        recipe("127.0.0.1", taken.address[1]).open()
    assert caught.value.errno == errno.EADDRINUSE
    assert str(caught.value) == (
        f"cannot listen on {taken.url}: Address already in use; stop the program that uses it, or listen elsewhere"
    )


def test_reuse_port_shares_it(opened, recipe):
    first = opened(recipe("127.0.0.1", 0, reuse_port=True))
    second = opened(recipe("127.0.0.1", first.address[1], reuse_port=True))
    assert second.address == first.address


def test_a_port_is_free_again_right_after_its_connections_ended(opened):
    listener = opened(TCP("127.0.0.1", 0))
    client = socket.create_connection(listener.address)
    connection, _ = listener.accept()
    connection.close()  # the server's side closes first, so its address stays in TIME_WAIT
    assert client.recv(1) == b""
    client.close()
    listener.close()
    opened(TCP(*listener_address(listener)))


def listener_address(listener):
    host, port = listener.url.removeprefix("tcp://").split(":")
    return host, int(port)


@pytest.mark.parametrize(("host", "words"), [("no-such-host.invalid", "does not resolve"), ("192.0.2.1", "use an address of this machine")])
def test_a_host_that_is_not_here_is_one_sentence(recipe, host, words):
    with pytest.raises(ListenError, match=words):
        recipe(host, 0).open()


def test_a_port_that_needs_a_right_says_so():
    python(
        """
import os
from socketkit import TCP
from socketkit.errors import ListenError
open("/proc/sys/net/ipv4/ip_unprivileged_port_start").read().strip() == "1024" or os._exit(0)
import encodings.idna
if os.getuid() == 0:
    os.setuid(65534)
try:
    TCP("127.0.0.1", 1).open()
except ListenError as error:
    assert "Permission denied; use a port from 1024 on" in str(error), error
else:
    raise AssertionError("bound")
"""
    )


@pytest.mark.parametrize("port", [-1, 65536, "80", True, None, 8.0])
def test_a_port_that_is_none_is_refused_by_name(recipe, port):
    with pytest.raises(ValueError, match="port must be a whole number from 0 to 65535"):
        recipe("127.0.0.1", port)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("127.0.0.1:80", {"host": "127.0.0.1", "port": 80}),
        ("[::1]:80", {"host": "::1", "port": 80}),
        ("*:0", {"host": "*", "port": 0}),
        (":53", {"host": "", "port": 53}),
    ],
)
def test_text_is_host_and_port(recipe, text, fields):
    assert recipe.locate(text) == fields


@pytest.mark.parametrize("text", ["", "127.0.0.1", "::1:80", "host:", "host:http", "host:65536", "[::1:80"])
def test_text_that_is_not_shows_the_right_form(recipe, text):
    with pytest.raises(ValueError, match=r"write 127\.0\.0\.1:9999, \[::1\]:9999 or \*:9999"):
        recipe.locate(text)


def test_a_closed_listener_has_no_descriptor_and_closes_twice(recipe):
    listener = recipe("127.0.0.1", 0).open()
    listener.close()
    listener.close()
    assert listener.fileno() == -1
