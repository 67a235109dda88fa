"""Each kind of refusal is counted under its own label."""

from __future__ import annotations

import contextlib
import os

import attrs
import pytest
from prometheus_client import generate_latest
from prometheus_support import LATE, metrics_of
from socketkit_prometheus import Metrics, Prometheus

from socketkit import TCP, ConversationHandler, DatagramRequestHandler, Layered, Server, StreamRequestHandler
from socketkit.seams import REFUSALS, Refusal
from socketkit.testing.clients import connect
from socketkit.testing.programs import wait_until


class Echo(ConversationHandler):
    def handle_one_request(self):
        self.wfile.write(self.rfile.readline())


class Waits(StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"here")
        self.wfile.flush()
        self.rfile.read()


class Datagrams(DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.packet)


class Unverified(Server):
    def verify_request(self, request, client_address):
        return False


@attrs.frozen
class Exhausted:
    """A dispatcher that has no thread for any request."""

    def start(self, work):
        return self

    def dispatch(self, request, client_address):
        raise RuntimeError("can't start new thread")

    def wait(self, timeout):
        return True

    def close(self):
        """Close nothing."""


@attrs.frozen
class Closed:
    """A dispatcher that turns everyone away, for this reason."""

    reason: str

    def start(self, work):
        return self

    def drive(self, open_intake):
        with open_intake() as intake:
            while not intake.stopped:
                unit = intake.take()
                if unit is not None:
                    unit.refuse(self.reason)

    def wait(self, timeout):
        return True

    def close(self):
        """Close nothing."""


def crowd(server, clients):
    """One client is served, and so the next is one too many."""
    first = visit(server, clients)
    first.sendall(b"hello\n")
    assert first.recv(5)
    visit(server, clients)


def visit(server, clients, data=b""):
    client = clients.enter_context(connect(server.addresses[0], server.transports[0].kind, LATE))
    if data:  # otherwise it may be turned away already
        client.sendall(data)
    return client


def stop_early(server, clients):
    """A client that is still silent when the server stops."""
    visit(server, clients)
    wait_until(lambda: server.stats().active == 1)
    server.stop()


KINDS = {
    "max_connections": (crowd, {"limits": {"max_connections": 1, "overflow": "reject"}}),
    "max_per_peer": (crowd, {"limits": {"max_per_peer": 1}}),
    "network": (visit, {"limits": {"deny": ["127.0.0.1"]}}),
    "user": (visit, {"listen": "unix", "limits": {"allow_users": [os.getuid() + 1]}}),
    "idle": (crowd, {"limits": {"max_connections": 1, "overflow": "shed"}}),
    "busy": (crowd, {"handler": Waits, "dispatcher": "pool:1,overflow=reject"}),
    "resources": (visit, {"dispatcher": Exhausted()}),
    "verify_request": (visit, {"server": Unverified, "dispatcher": "thread"}),
    "truncated": (lambda server, clients: visit(server, clients, b"x" * 11), {"listen": "udp", "handler": Datagrams}),
    "stop": (stop_early, {"listen": Layered(TCP("127.0.0.1", 0), Prometheus()), "dispatcher": "thread", "lifecycle": "graceful:drain=0.2"}),
    "other": (visit, {"dispatcher": Closed("closed on Sundays")}),
}


def test_there_is_a_way_to_provoke_each_kind():
    assert KINDS.keys() == REFUSALS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_refusal_has_its_label(kind, tmp_path):
    provoke, options = KINDS[kind]
    assert provoked(provoke, tmp_path, **options) == {kind: 1}


def test_a_kind_that_is_not_known_is_another(tmp_path):
    assert provoked(visit, tmp_path, dispatcher=Closed(Refusal("closed on Sundays", "sunday"))) == {"other": 1}


def provoked(provoke, folder, listen="tcp://127.0.0.1:0", handler=Echo, server=Server, **parts):
    """Serve, provoke a refusal, and return what the metrics say of refusals."""
    places = {"unix": f"unix://{folder / 'stream'}", "udp": "udp://127.0.0.1:0?max_packet_size=10"}
    metrics = Metrics()
    with server(places.get(listen, listen), handler, observers=[metrics], **parts) as serving, contextlib.ExitStack() as clients:
        serving.start()
        provoke(serving, clients)
        wait_until(lambda: serving.stats().outcomes.get("refused"))
    prefix = 'socketkit_requests_refused_total{reason="'
    found = {
        name.removeprefix(prefix)[:-2]: value
        for name, value in metrics_of(generate_latest(metrics).decode()).items()
        if name.startswith(prefix)
    }
    assert found.keys() == REFUSALS.keys()
    return {kind: value for kind, value in found.items() if value}
