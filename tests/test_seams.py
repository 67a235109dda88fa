"""What the seams say to authors of parts, and that the examples for them keep to it."""

import pytest

from helpers.support import ROOT, python

QUEUED_WHILE_BUSY = """
import re, socket, threading
page = open({page!r}).read()
exec(re.search("```python\\n(.*?)```", page, re.S)[1], globals())

from socketkit import TCP, Graceful, Server

busy, leave = threading.Semaphore(0), threading.Event()

def handle(request, client_address, server):
    if request.recv(4) == b"hold":
        busy.release()
        assert leave.wait(20)
    request.sendall(b"done")

server = Server(TCP("127.0.0.1", 0), handle, dispatcher={dispatcher}, lifecycle=Graceful(drain=10))
with server.start():
    clients = [socket.create_connection(server.addresses[0], timeout=10) for _ in range(2)]
    for client in clients:
        client.sendall(b"hold")
    for client in clients:
        assert busy.acquire(timeout=10)
    queued = socket.create_connection(server.addresses[0], timeout=10)  # nobody is free: it stays with the kernel
    queued.sendall(b"go! ")
    server.stop(wait=False)
    leave.set()
    report = server.stop()
    assert [each.recv(4) for each in (*clients, queued)] == [b"done"] * 3
assert (report.forced, report.stuck) == (0, ()), report
assert server.stats().outcomes == {{"finished": 3}}, server.stats()
"""


@pytest.mark.parametrize(
    ("page", "dispatcher"),
    [("how-to/write-a-dispatcher.md", "Crew(2)"), ("tutorial/write-a-dispatcher.md", "Bounded(2)")],
)
def test_the_documentation_s_dispatchers_serve_in_a_drain_what_the_kernel_had_queued(page, dispatcher):
    python(QUEUED_WHILE_BUSY.format(page=str(ROOT / "docs" / page), dispatcher=dispatcher))


@pytest.mark.parametrize("dispatcher", ["thread", "pool:2", "adaptive"])
def test_a_listener_above_descriptor_1023_is_drained_under_an_own_get_request(dispatcher):
    python(
        f"""
import os, resource, socket
from socketkit import Graceful, Server, TCP

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096) if hard < 0 else min(max(soft, 4096), hard), hard))
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]

class Own(Server):
    def get_request(self):
        return super().get_request()

def handle(request, client_address, server):
    request.sendall(b"done")

server = Own(TCP("127.0.0.1", 0), handle, dispatcher={dispatcher!r}, lifecycle=Graceful(drain=5))
with server.start():
    assert server.fileno() > 1023
    with socket.create_connection(server.addresses[0], timeout=10) as client:
        assert client.recv(4) == b"done"
    report = server.stop()
assert (report.forced, report.stuck) == (0, ()), report
assert server.state.value == "stopped", server.state
"""
    )
