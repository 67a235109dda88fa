"""Datagrams that came and found no room: the kernel drops them, and the server knows how many."""

import contextlib
import socket
import sys

import pytest

from helpers import innards
from helpers.support import python
from socketkit import TCP, UDP, DatagramRequestHandler, Graceful, Server, StreamRequestHandler, UnixDatagram
from socketkit.testing.clients import talk
from socketkit.transports._sockets import DatagramListener

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")


def told_by_proc(port):
    """What the system says elsewhere, in the last column of /proc/net/udp."""
    with open("/proc/net/udp") as table:
        return sum(int(line.split()[-1]) for line in table if line.split()[1].endswith(f":{port:04X}"))


def flood(listener, count=100):
    """Send so many large datagrams to a listener of which nobody takes any yet, and which has little room for them."""
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(count):
            client.sendto(bytes(1000), listener.socket.getsockname())


def test_what_was_dropped_and_what_was_taken_is_all_that_was_sent():
    with Server(UDP("127.0.0.1", 0), DatagramRequestHandler, lifecycle=Graceful(drain=5)) as server:
        assert server.stats().dropped == 0
        flood(server)
        dropped = server.stats().dropped
        assert 0 < dropped == told_by_proc(server.addresses[0][1])
        server.start()
        server.stop()  # a drain takes what waits in the kernel
        assert server.stats().outcomes["finished"] + dropped == 100
        assert server.stats().dropped == dropped, "it is known after the listener is closed"
    with server:
        flood(server)
        assert server.stats().dropped == dropped + told_by_proc(server.addresses[0][1])


def test_workers_drop_for_the_one_that_forked_them():
    python("""
from socketkit import *
from test_drops import flood
server = Server(UDP("127.0.0.1", 0), DatagramRequestHandler, dispatcher=Prefork(2, Sync()), lifecycle=Graceful(drain=5))
class Stop:
    def server_started(self, server):
        flood(server)
        server.stop(wait=False)
server._observe([Stop()])
server.serve_forever()
stats = server.stats()
assert stats.dropped > 0, stats
""")


def test_all_listeners_count_together():
    with Server([UDP("127.0.0.1", 0), TCP("127.0.0.1", 0), UDP("127.0.0.1", 0)], lambda *_: None) as server:
        counts = []
        for listener in (innards.listeners(server)[0], innards.listeners(server)[2]):
            flood(listener)
            counts.append(told_by_proc(listener.address[1]))
            assert server.stats().dropped == sum(counts)
    assert server.stats().dropped == sum(counts) > counts[0] > 0


def test_what_was_dropped_before_is_not_this_listeners():
    with contextlib.closing(UDP("127.0.0.1", 0).open()) as before:
        flood(before)
        with contextlib.closing(DatagramListener(before.socket.dup(), before.url, 65535)) as after:
            assert before.dropped > after.dropped == 0
            flood(after, 10)
            assert after.dropped == 10
        assert after.dropped is None, "it is closed"


def test_where_nothing_can_be_dropped_nothing_was(tmp_path):
    with Server([TCP("127.0.0.1", 0), UnixDatagram(str(tmp_path / "s"))], lambda *_: None) as server:
        assert server.stats().dropped == 0
    with Server(TCP("127.0.0.1", 0), StreamRequestHandler).start() as server:
        talk(server.addresses[0], b"")
    assert server.stats().dropped == 0


def test_where_the_system_does_not_tell_it_is_not_known(monkeypatch):
    monkeypatch.setattr("socketkit.transports._sockets._SO_MEMINFO", 9999)
    with Server([TCP("127.0.0.1", 0), UDP("127.0.0.1", 0)], lambda *_: None) as server:
        assert server.stats().dropped is None
    assert server.stats().dropped is None
