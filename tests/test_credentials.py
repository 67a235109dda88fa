"""Who is at the other end of a Unix socket, and that only those get in who may."""

import errno
import os
import socket

import pytest

from helpers.support import python
from socketkit import (
    TCP,
    DatagramRequestHandler,
    Limits,
    PeerCredentials,
    Server,
    StreamRequestHandler,
    UnixDatagram,
    UnixStream,
    peer_credentials,
)
from socketkit.testing.clients import address, talk

HOW = pytest.mark.parametrize("dispatcher", ["sync", "thread", "pool:2", "adaptive", "asyncio"])
SOMEBODY_ELSE = os.geteuid() + 1


class Knows(StreamRequestHandler):
    """Says who you are."""

    def handle(self):
        peer = peer_credentials(self.request)
        self.wfile.write(b"%d %d %d" % (peer.pid, peer.uid, peer.gid))


class Watcher:
    """Notes why requests were refused."""

    def __init__(self):
        self.reasons = []

    def request_refused(self, server, client_address, reason):
        self.reasons.append(reason)


def said_to_me(where):
    """Connect and return all that comes; who is turned away could not send anything."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(where)
        return client.makefile("rb").read()


@HOW
def test_a_handler_can_ask_who_its_peer_is(tmp_path, dispatcher):
    with Server(UnixStream(str(tmp_path / "s")), Knows, dispatcher=dispatcher).start() as server:
        assert said_to_me(address(server.urls[0])) == b"%d %d %d" % (os.getpid(), os.geteuid(), os.getegid())


TWO_CLIENTS = """
import os, socket
from socketkit import *
from socketkit.testing.clients import address
from test_credentials import Knows, said_to_me
server = Server("unix:@socketkit-test-%d" % os.getpid(), Knows, dispatcher={dispatcher!r}, limits=Limits(allow_users=[os.geteuid()]))
where = address(server.urls[0])
server.__enter__()
children = []
for user in (os.geteuid(), {other}):
    answer, write = os.pipe()
    child = os.fork()  # while there is no thread
    if not child:
        if user != os.geteuid():
            os.setgid(user)
            os.setuid(user)
        said = said_to_me(where)
        os.write(write, said or b"nothing")
        os._exit(0)
    os.close(write)
    children.append((child, answer, user))
with server.start():
    for child, answer, user in children:
        said = os.read(answer, 100)
        assert said == (b"%d %d %d" % (child, user, os.getegid()) if user == os.geteuid() else b"nothing"), (said, user)
        os.waitpid(child, 0)
    server.stop()
assert server.stats().outcomes == {outcomes}, server.stats()
"""


@pytest.mark.parametrize("dispatcher", ["adaptive", "prefork:2", "fork"])
def test_each_process_is_told_by_its_own_number(dispatcher):
    python(TWO_CLIENTS.format(dispatcher=dispatcher, other="os.geteuid()", outcomes={"finished": 2}))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("dispatcher", ["adaptive", "prefork:2", "fork"])
def test_an_abstract_name_is_for_the_users_that_are_allowed(dispatcher):
    python(TWO_CLIENTS.format(dispatcher=dispatcher, other="65534", outcomes={"finished": 1, "refused": 1}))


@HOW
def test_who_is_none_of_the_users_is_turned_away_with_a_reason(tmp_path, dispatcher):
    limits = Limits(allow_users=[SOMEBODY_ELSE], reply="not you")
    watcher = Watcher()
    with Server(UnixStream(str(tmp_path / "s")), Knows, dispatcher=dispatcher, limits=limits, observers=[watcher]).start() as server:
        assert said_to_me(address(server.urls[0])) == b"not you"
    assert watcher.reasons == ["the client's user is not allowed"]
    assert server.stats().outcomes == {"refused": 1}


def test_users_hold_for_unix_sockets_only():
    with Server(
        TCP("127.0.0.1", 0), lambda request, *_: request.sendall(b"in"), limits=Limits(allow_users=[SOMEBODY_ELSE])
    ).start() as server:
        assert talk(server.addresses[0], b"") == b"in"


def test_nobody_knows_who_has_sent_a_datagram_so_none_gets_in(tmp_path):
    watcher = Watcher()
    limits = Limits(allow_users=[os.geteuid()], reply="no")
    with Server(UnixDatagram(str(tmp_path / "s")), DatagramRequestHandler, limits=limits, observers=[watcher]).start():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.bind("")
            client.connect(str(tmp_path / "s"))
            client.send(b"hello")
            assert client.recv(10) == b"no"
    assert watcher.reasons == ["the client's user is not allowed"]


def test_of_what_is_no_connected_unix_socket_it_is_not_known():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        for nobody in (client, (b"data", client), object()):
            with pytest.raises(OSError, match="only Unix sockets have peer credentials") as caught:
                peer_credentials(nobody)
            assert caught.value.errno == errno.EOPNOTSUPP
    with socket.socket(socket.AF_UNIX) as alone, pytest.raises(OSError, match="not connected"):
        peer_credentials(alone)


def test_it_can_be_compared_and_printed():
    here, there = socket.socketpair()
    with here, there:
        found = peer_credentials(here)
    assert found == PeerCredentials(os.getpid(), os.geteuid(), os.getegid())
    assert repr(found) == f"PeerCredentials(pid={found.pid}, uid={found.uid}, gid={found.gid})"
