"""UDP on several addresses: where replies come from, multicast groups, and the receive buffer."""

import asyncio
import errno
import socket
import sys

import pytest

from helpers.support import TESTS, python
from socketkit import UDP, AsyncDatagramRequestHandler, DatagramRequestHandler, InheritedFD, Server
from socketkit._engine.accepting import Source
from socketkit._engine.intake import Intake
from socketkit.composition import config
from socketkit.errors import ListenError
from socketkit.seams.replies import ReplySocket
from socketkit.testing.programs import GUARD, run, with_path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="replies leave from their address on Linux only")

DISPATCHERS = ["sync", "thread", "fork", "pool:2", "adaptive", "executor", "prefork:1/sync"]


class Upper(DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())


class AsyncUpper(AsyncDatagramRequestHandler):
    async def handle(self):
        await self.reply(self.packet.upper())


@pytest.fixture
def client():
    """Return a function that sends a datagram from a socket without a peer, and returns the reply and where it came from."""

    def ask(where, data=b"hello"):
        family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(GUARD)
            sock.sendto(data, where)
            reply, source = sock.recvfrom(100)
            return reply, source[:2]

    return ask


# --- replies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "v6only"), [("*", None), ("*", True), ("0.0.0.0", None), ("::", False)])
def test_a_reply_leaves_from_the_address_that_the_datagram_came_to(host, v6only, client):
    with Server(UDP(host, 0, v6only=v6only), Upper).start() as server:
        port = server.addresses[0][1]
        for asked in ["127.0.0.1", "127.0.0.77", *(["::1"] if host != "0.0.0.0" else [])]:
            assert client((asked, port)) == (b"HELLO", (asked, port))


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_it_does_under_every_dispatcher(dispatcher, client):
    python(
        f"""
from socketkit import *
from transports.test_datagrams import Upper
import socket
with Server(UDP("*", 0), Upper, dispatcher={dispatcher!r}).start() as server, socket.socket(type=socket.SOCK_DGRAM) as client:
    client.settimeout(20)
    where = ("127.0.0.77", server.addresses[0][1])
    client.sendto(b"hello", where)
    assert client.recvfrom(100) == (b"HELLO", where)
"""
    )


def test_it_does_for_coroutines(client):
    with Server(UDP("*", 0), AsyncUpper, dispatcher="asyncio").start() as server:
        where = ("127.0.0.77", server.addresses[0][1])
        assert client(where) == (b"HELLO", where)


def test_it_does_on_a_socket_that_was_passed_on(client):
    with socket.socket(type=socket.SOCK_DGRAM) as passed:
        passed.bind(("0.0.0.0", 0))
        with Server(InheritedFD(passed.detach(), kind="datagram"), Upper).start() as server:
            where = ("127.0.0.77", server.addresses[0][1])
            assert client(where) == (b"HELLO", where)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_socket_that_is_bound_to_one_address_is_handed_out_itself(host, opened):
    [listener] = opened(UDP(host, 0))
    with socket.socket(listener.socket.family, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", listener.address)
        assert listener.accept()[0] == (b"x", listener.socket)


@pytest.fixture
def reply_socket(opened):
    """Return what a handler gets in place of a socket that is bound to every address, and the socket of the client."""
    [listener] = opened(UDP("0.0.0.0", 0))
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(GUARD)
        client.sendto(b"x", ("127.0.0.77", listener.address[1]))
        (_, answer), peer = listener.accept()
        assert peer == client.getsockname() or peer[1] == client.getsockname()[1]
        yield answer, peer, client


def test_all_forms_of_sendto_keep_the_source(reply_socket):
    answer, peer, client = reply_socket
    for data in (b"1", bytearray(b"2"), memoryview(b"3")):
        assert answer.sendto(data, peer) == 1
        assert answer.sendto(data, socket.MSG_DONTWAIT, peer) == 1
    assert [client.recvfrom(9)[1][0] for _ in range(6)] == ["127.0.0.77"] * 6


def test_a_datagram_to_another_peer_leaves_as_from_the_plain_socket(reply_socket):
    answer, _, _ = reply_socket
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.settimeout(GUARD)
        other.bind(("127.0.0.1", 0))
        answer.sendto(b"news", other.getsockname())
        assert other.recvfrom(9) == (b"news", ("127.0.0.1", answer.getsockname()[1]))


def test_everything_else_is_that_of_the_socket(reply_socket):
    answer, _, _ = reply_socket
    assert isinstance(answer, ReplySocket)
    for name in ("fileno", "getsockname", "gettimeout"):
        assert getattr(answer, name)() == getattr(answer.socket, name)()
    assert answer.family == socket.AF_INET
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        answer.nothing_of_that_name  # noqa: B018


@pytest.mark.parametrize("host", ["0.0.0.0", "*"])
def test_a_datagram_that_is_too_long_is_refused_as_elsewhere(host, client):
    with Server(UDP(host, 0, max_packet_size=10), Upper).start() as server:
        where = ("127.0.0.1", server.addresses[0][1])
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.sendto(bytes(11), where)
        assert client(where, b"0123456789")[0] == b"0123456789"
        server.stop()
        assert server.stats().outcomes == {"finished": 1, "refused": 1}


class Full:
    """A socket without room for the first datagram of each request."""

    def __init__(self, sock):
        self.sock, self.refused = sock, set()

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def sendmsg(self, buffers, *arguments):
        if buffers[0] in self.refused:
            return self.sock.sendmsg(buffers, *arguments)
        self.refused.add(buffers[0])
        raise BlockingIOError


def test_coroutines_that_wait_for_room_are_all_woken(reply_socket):
    answer, peer, client = reply_socket
    shared = Full(answer.socket)

    async def main():
        requests = [(b"%d" % number, ReplySocket(shared, peer, answer.source)) for number in range(3)]
        handlers = [object.__new__(AsyncUpper) for _ in requests]
        for handler, (packet, sock) in zip(handlers, requests, strict=True):
            handler.packet, handler.socket, handler.client_address = packet, sock, peer
        await asyncio.wait_for(asyncio.gather(*(handler.handle() for handler in handlers)), 20)

    asyncio.run(main())
    assert sorted(client.recv(9) for _ in range(3)) == [b"0", b"1", b"2"]


LINK_LOCAL = """
ip link set lo up
ip link add d0 type veth peer name d1
ip link set d0 up
ip link set d1 up
ip -6 addr add fe80::1/64 dev d0 nodad
ip -6 addr add fe80::2/64 dev d0 nodad
exec "$1" -c '
import socket
from socketkit import Server, UDP
from transports.test_datagrams import Upper
with Server(UDP("*", 0), Upper).start() as server, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
    client.settimeout(20)
    client.sendto(b"hello", ("fe80::2", server.addresses[0][1], 0, socket.if_nametoindex("d0")))
    print(client.recvfrom(100)[1][0])
'
"""


def test_a_reply_leaves_from_a_link_local_address_too(isolated):
    command = isolated("-n")
    done = run(*command, "sh", "-ec", LINK_LOCAL, "sh", sys.executable, env=with_path(TESTS))
    assert done.stdout == "fe80::2\n"


# --- multicast ----------------------------------------------------------------------------------------------------------


def send(group, port, interface="lo"):
    """Send a datagram to a group by an interface, for IPv4 lo; return the reply and where it came from."""
    family = socket.AF_INET6 if ":" in group else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(GUARD)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(interface))
        sock.sendto(b"hello", (group, port))
        return sock.recvfrom(100)


@pytest.mark.parametrize(("host", "v6only"), [("*", None), ("*", True), ("0.0.0.0", None), ("239.1.2.3", None)])
def test_a_server_gets_the_datagrams_of_its_groups_and_replies_from_its_own_address(host, v6only):
    with Server(UDP(host, 0, v6only=v6only, groups=["239.1.2.3"], interface="lo"), Upper).start() as server:
        port = server.addresses[0][1]
        assert send("239.1.2.3", port) == (b"HELLO", ("127.0.0.1", port))


IPV6_GROUP = """
ip link set lo up
ip link add d0 type veth peer name d1
for name in d0 d1; do
    echo 0 > /proc/sys/net/ipv6/conf/$name/accept_dad  # else the addresses cannot be used at once
    ip link set $name up
done
exec "$1" -c '
import socket
from socketkit import Server, UDP
from transports.test_datagrams import Upper, send
with Server(UDP("*", 0, groups=["ff02::1234", "239.1.2.3"], interface="d0"), Upper).start() as server:
    print(send("ff02::1234", server.addresses[0][1], interface="d1")[0])
'
"""


def test_groups_of_both_families_are_joined(isolated):
    done = run(*isolated("-n"), "sh", "-ec", IPV6_GROUP, "sh", sys.executable, env=with_path(TESTS))
    assert done.stdout == "b'HELLO'\n"


def test_a_group_that_another_program_has_joined_is_not_that_of_the_server():
    with (
        Server(UDP("0.0.0.0", 0, groups=["239.1.2.3"], interface="lo"), Upper).start() as server,
        Server(UDP("0.0.0.0", 0, groups=["239.1.2.4"], interface="lo"), Upper).start(),
    ):
        port = server.addresses[0][1]
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            sock.sendto(b"not ours", ("239.1.2.4", port))
        send("239.1.2.3", port)
        server.stop()
        assert server.stats().accepted == 1


def test_a_group_that_was_joined_before_a_restart_stays_joined(opened):
    recipe = UDP("0.0.0.0", 0, groups=["239.1.2.3"], interface="lo")
    [listener] = opened(recipe)
    copy = listener.socket.dup()
    with Server(InheritedFD(copy.detach(), kind="datagram"), Upper).start():
        assert send("239.1.2.3", listener.address[1])[0] == b"HELLO"
    recipe._join([listener.socket])  # as the next generation does


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "239.1.2.4"])
def test_groups_need_a_host_that_gets_their_datagrams(host):
    with pytest.raises(ValueError, match=rf"groups must be empty unless .* a socket that is bound to {host} gets none"):
        UDP(host, 0, groups=["239.1.2.3"])


@pytest.mark.parametrize("groups", [["10.0.0.1"], ["nobody"], "239.1.2.3", [239], ["ff02::1%lo"]])
def test_what_is_no_group_is_refused(groups):
    with pytest.raises(ValueError, match="groups must be a list of multicast addresses, such as 239"):
        UDP("*", 0, groups=groups)


def test_a_group_of_ipv6_is_refused_where_only_ipv4_is_served():
    says = r"groups must not include ff02::1234, because 0\.0\.0\.0 has only IPv4 addresses; listen at \* for both families"
    with pytest.raises(ValueError, match=says):
        UDP("0.0.0.0", 0, groups=["239.1.2.3", "ff02::1234"])


def test_a_group_whose_family_the_host_has_not_is_named_and_nothing_stays_bound():
    with pytest.raises(ListenError, match=r"the group 239.1.2.3 cannot be joined \(the host has no address of its family\)") as caught:
        UDP("::", 0, v6only=True, groups=["239.1.2.3"]).open_all()
    assert caught.value.errno == errno.EAFNOSUPPORT


def test_groups_are_read_from_a_url():
    found = config.transport("udp://*:53?groups=239.1.2.3,ff02::1&interface=eth0&recv_buffer=65536")
    assert found == UDP("*", 53, groups=("239.1.2.3", "ff02::1"), interface="eth0", recv_buffer=65536)


# --- wake-ups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_up_to_64_datagrams_are_taken_between_two_polls(host, opened):
    [listener] = opened(UDP(host, 0))
    source = Source()
    source.fileno, source.take = listener.fileno, listener.accept
    with Intake([source]) as intake, socket.socket(type=socket.SOCK_DGRAM) as client:
        for _ in range(100):
            client.sendto(b"x", ("127.0.0.1", listener.address[1]))
        polls, poll = [], intake._poller.poll
        intake._poller.poll = lambda timeout: polls.append(timeout) or poll(timeout)
        assert [intake.take(0)[0][0] for _ in range(100)] == [b"x"] * 100
    assert len(polls) == 2


# --- recv_buffer --------------------------------------------------------------------------------------------------------


def test_a_receive_buffer_has_the_size_that_was_asked_for(opened, logged):
    [listener] = opened(UDP("127.0.0.1", 0, recv_buffer=10_000))
    assert listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 20_000  # which includes the system's own records
    assert logged() == []


def test_the_log_says_how_large_a_receive_buffer_is_if_the_system_gives_less(opened, logged):
    with open("/proc/sys/net/core/rmem_max") as setting:
        most = int(setting.read())
    opened(UDP("127.0.0.1", 0, recv_buffer=most + 1))
    numbers = f"the system gives a receive buffer of {most} bytes, not the {most + 1} of recv_buffer"
    assert logged() == [f"WARNING udp://127.0.0.1:0: {numbers}; raise net.core.rmem_max"]


@pytest.mark.parametrize("value", [0, -1, 1 << 31, "8", 1.5])
def test_a_receive_buffer_is_a_number_that_the_system_takes(value):
    with pytest.raises(ValueError, match="recv_buffer must be a whole number from 1 to 2147483647"):
        UDP("*", 0, recv_buffer=value)
