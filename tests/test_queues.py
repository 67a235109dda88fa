"""The connections that wait in the system's queue of a listener are in the statistics."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

import pytest

from helpers.support import wait_until
from socketkit import TCP, Limits, Server, StreamRequestHandler
from socketkit.seams import Queue

LATE = 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how many connections wait")


class Holds(StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"held\n")
        self.rfile.read()


def connect(stack, server):
    return stack.enter_context(socket.create_connection(server.addresses[0], timeout=LATE))


def test_connections_beyond_what_a_server_takes_are_in_its_queue():
    server = Server(TCP("127.0.0.1", 0, backlog=7), Holds, limits=Limits(max_connections=1)).start()
    [url] = server.urls
    with contextlib.ExitStack() as stack:
        assert connect(stack, server).recv(10) == b"held\n"
        assert server.stats().queues == {url: Queue(0, 7)}
        waiting = [connect(stack, server) for _ in range(3)]
        wait_until(lambda: server.stats().queues == {url: Queue(3, 7)})
    del waiting
    wait_until(lambda: server.stats().queues == {url: Queue(0, 7)})
    server.stop()
    assert server.stats().queues == {}


def test_a_listener_without_such_a_queue_is_left_out(tmp_path):
    server = Server([f"unix://{tmp_path}/socket", "udp://127.0.0.1:0", "tcp://127.0.0.1:0"], lambda *_: None).start()
    assert list(server.stats().queues) == [server.urls[2]]
    server.stop()


def test_any_thread_may_read_the_queues_while_the_server_stops():
    server = Server(TCP("127.0.0.1", 0), Holds).start()
    stopped, errors = threading.Event(), []

    def read():
        try:
            while not stopped.is_set():
                server.stats()
        except Exception as error:  # noqa: BLE001 - any would be wrong
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    server.stop()
    stopped.set()
    reader.join(LATE)
    assert errors == []
