"""The layer by its name: which servers are observed, and that each has its own metrics."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_support import LATE, metrics_of, scrape
from socketkit_prometheus import BUCKETS, Metrics, Prometheus, socketkit_layers, socketkit_observers

from socketkit import (
    TCP,
    AsyncDatagramRequestHandler,
    AsyncStreamRequestHandler,
    DatagramRequestHandler,
    Layered,
    Server,
    StreamRequestHandler,
    compose,
)
from socketkit.errors import ConfigError
from socketkit.testing import Account
from socketkit.testing.clients import ask, connect, rest_of, talk
from socketkit.testing.programs import wait_until

LISTEN = ["tcp://127.0.0.1:0", "tcp+prometheus://127.0.0.1:0"]


class Echo(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline())


class DatagramEcho(DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read())


class AsyncEcho(AsyncStreamRequestHandler):
    async def handle(self):
        self.writer.write(await self.reader.readline())


class AsyncDatagramEcho(AsyncDatagramRequestHandler):
    async def handle(self):
        await self.reply(self.packet)


def test_the_hooks():
    assert socketkit_layers() == {"prometheus": Prometheus}
    with_it = Layered(TCP("127.0.0.1", 0), Prometheus())
    assert socketkit_observers(Server([TCP("127.0.0.1", 0), with_it], Echo)) == [with_it.layers[0].metrics]
    assert socketkit_observers(Server(TCP("127.0.0.1", 0), Echo)) == []


def test_servers_of_one_program_have_metrics_of_their_own():
    spec = {"handler": Echo, "listen": LISTEN}
    with compose(spec) as one, compose(spec) as other:
        one.start()
        other.start()
        for _ in range(3):
            talk(one.addresses[0], b"hello\n")
        talk(other.addresses[0], b"hello\n")
        assert scrape(one.addresses[1])["socketkit_handler_wait_seconds_count"] == 3
        assert scrape(other.addresses[1])["socketkit_handler_wait_seconds_count"] == 1


def test_an_observer_that_is_given_and_named_counts_once():
    recipe = Prometheus()
    with Server(["tcp://127.0.0.1:0", Layered(TCP("127.0.0.1", 0), recipe)], Echo, observers=[recipe.metrics]) as server:
        server.start()
        talk(server.addresses[0], b"hello\n")
        wait_until(lambda: server.stats().outcomes == {"finished": 1})
        assert scrape(server.addresses[1])['socketkit_requests_ended_total{outcome="finished"}'] == 1


def test_a_restarted_server_counts_on():
    server = Server(LISTEN, Echo)
    for _ in range(2):
        with server:
            server.start()
            talk(server.addresses[0], b"hello\n")
    assert metrics_of(generate_latest(server.transports[1].layers[0].metrics).decode())["socketkit_requests_accepted_total"] == 2


@pytest.mark.parametrize(("handler", "dispatcher"), [(DatagramEcho, "adaptive"), (AsyncDatagramEcho, "asyncio"), (AsyncEcho, "asyncio")])
def test_servers_of_datagrams_and_of_asynchronous_handlers_can_be_scraped(handler, dispatcher):
    listen = [f"{'tcp' if handler is AsyncEcho else 'udp'}://127.0.0.1:0", LISTEN[1]]
    with Server(listen, handler, dispatcher=dispatcher) as server:
        server.start()
        if handler is AsyncEcho:
            assert talk(server.addresses[0], b"hello\n") == b"hello\n"
        else:
            assert ask(server.addresses[0], b"hello") == b"hello"
        wait_until(lambda: server.stats().outcomes == {"finished": 1})
        found = scrape(server.addresses[1])
    assert found["socketkit_handler_duration_seconds_count"] == 1
    assert found.get("socketkit_datagrams_dropped_total", 0) == 0


@pytest.mark.parametrize("dispatcher", ["adaptive", "sync", "fork"])
def test_a_server_that_takes_single_requests_can_be_scraped(dispatcher):
    """Nobody starts it, so that its first request is the first that its observers hear of."""
    with Server(LISTEN, Echo, dispatcher=dispatcher) as server, ThreadPoolExecutor(1) as client:
        found = client.submit(scrape, server.addresses[1])
        server.handle_request()
        assert found.result(LATE)["socketkit_requests_accepted_total"] == 1
        answer = client.submit(talk, server.addresses[0], b"hello\n")
        server.handle_request()
        assert answer.result(LATE) == b"hello\n"
        found = client.submit(scrape, server.addresses[1])
        server.handle_request()
        found = found.result(LATE)
    assert found["socketkit_requests_accepted_total"] == 3
    assert found["socketkit_handler_wait_seconds_count"] == 1
    assert found["socketkit_server_start_time_seconds"] == pytest.approx(time.time(), abs=LATE)


def test_a_request_that_ends_after_its_server_has_stopped_is_counted_and_leaves_no_descriptor():
    def counts():
        return metrics_of(generate_latest(server.transports[1].layers[0].metrics).decode())

    server = Server(LISTEN, Echo, dispatcher="thread", lifecycle="classic")
    with server, ExitStack() as clients:
        server.start()
        client = clients.enter_context(connect(server.addresses[0], "stream", LATE))
        wait_until(lambda: server.stats().active == 1)
        server.stop()
        client.sendall(b"hello\n")
        assert rest_of(client) == b"hello\n"
        wait_until(lambda: counts()['socketkit_requests_ended_total{outcome="finished"}'] == 1)
    assert counts()["socketkit_handlers_running"] == 0
    assert not [each for each in Account.take().descriptors.values() if "socketkit-prometheus" in each]


def test_a_registry_of_the_program_takes_them():
    registry = CollectorRegistry()
    metrics = Metrics((0.5, 1))
    registry.register(metrics)
    with Server(TCP("127.0.0.1", 0), Echo, observers=[metrics]) as server:
        server.start()
        talk(server.addresses[0], b"hello\n")
        wait_until(lambda: server.stats().outcomes == {"finished": 1})
        found = metrics_of(generate_latest(registry).decode())
    assert found["socketkit_requests_accepted_total"] == 1
    assert [name for name in found if name.startswith("socketkit_handler_wait_seconds_bucket")] == [
        f'socketkit_handler_wait_seconds_bucket{{le="{bound}"}}' for bound in ("0.5", "1.0", "+Inf")
    ]


def test_options_as_text():
    server = Server(["tcp+prometheus://127.0.0.1:0?prometheus.path=/internal/metrics"], Echo)
    assert server.transports[0].layers == (Prometheus("/internal/metrics"),)
    assert Prometheus().buckets == BUCKETS


@pytest.mark.parametrize("buckets", [(), (0,), (1, 1), (2, 1), (1, float("inf")), ("a",), 5])
def test_buckets_that_are_none_are_refused(buckets):
    with pytest.raises(ValueError, match=r"buckets must be a list of seconds, each more than the one before, such as \[0.001, 0.1, 10\]"):
        Prometheus(buckets=buckets)


@pytest.mark.parametrize("path", ["metrics", "", "/a b", "/m\r\nX: y", 5, "/\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(ValueError, match="path must be a path such as /metrics"):
        Prometheus(path)


def test_a_faulty_option_is_reported_by_its_key():
    with pytest.raises(ConfigError, match="path"):
        Server(["tcp+prometheus://127.0.0.1:0?prometheus.path=metrics"], Echo)
