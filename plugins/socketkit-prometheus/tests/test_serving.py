"""The numbers agree with the server's own under each dispatcher, whichever process answers, and when processes are killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from prometheus_support import LATE, metrics_of, scrape

from socketkit import Adaptive
from socketkit.testing.clients import address, ask, connect, rest_of, talk
from socketkit.testing.programs import Program, wait_until

SERVER = """
import json, os, signal, sys
from prometheus_client import generate_latest
from socketkit import Server, StreamRequestHandler

class Obeys(StreamRequestHandler):
    def handle(self):
        word = self.rfile.readline().strip()
        if word == b"raise":
            raise ValueError("asked to")
        if word == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        self.wfile.write(b"%d" % os.getpid())
        if word == b"hold":
            self.wfile.flush()
            self.rfile.readline()

class Says:
    def server_started(self, server):
        print("serving", *server.urls, flush=True)

def main(handler=Obeys, url="tcp://127.0.0.1:0", says=Says()):
    import logging
    logging.getLogger("socketkit").addHandler(logging.NullHandler())
    listen = [url, "tcp+prometheus://127.0.0.1:0"]
    server = Server(listen, handler, dispatcher=sys.argv[1], limits=dict(deny=["127.0.0.7"]), observers=[says])
    server.serve_forever()
    stats = server.stats()
    print("counted", json.dumps([stats.accepted, stats.active, dict(stats.outcomes)]))
    print(generate_latest(server.transports[1].layers[0].metrics).decode())
"""

ASYNC = """
from socketkit import AsyncStreamRequestHandler

class Awaits(AsyncStreamRequestHandler):
    async def handle(self):
        word = (await self.reader.readline()).strip()
        if word == b"raise":
            raise ValueError("asked to")
        self.writer.write(b"%d" % os.getpid())
        if word == b"hold":
            await self.writer.drain()
            await self.reader.readline()

main(Awaits)
"""

DATAGRAMS = """
import socket
from socketkit import DatagramRequestHandler

class Echoes(DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.packet)

class Floods(Says):
    "Sends more than there is room for, before anybody takes it."
    def server_started(self, server):
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            for _ in range(100):
                client.sendto(bytes(1000), server.addresses[0])
        super().server_started(server)

main(Echoes, "udp://127.0.0.1:0", Floods() if sys.argv[2:] else Says())
"""

IN_ONE_PROCESS = ["sync", "thread", "pool:4", "adaptive", "executor", "asyncio"]
IN_SEVERAL = ["fork", "prefork:2", "prefork:2/pool:2", "prefork:2/sync", "prefork:2/asyncio", "prefork:2/fork"]


@contextlib.contextmanager
def serving(dispatcher, source="main()", *arguments):
    """Serve in a program; return it, and the addresses of its handler and of its metrics."""
    with Program.python("-c", SERVER + source, dispatcher, *arguments) as program:
        [urls] = program.line(r"^serving (\S+) (\S+)")
        yield program, *map(address, urls.groups())


def visit(where, word):
    """Send a word, and return all that is answered; nothing if the connection is reset."""
    with contextlib.suppress(ConnectionError):
        return talk(where, b"%s\n" % word, LATE)
    return b""


def settled(metrics, **expected):
    """Scrape until the samples have these values, and return all of them."""
    found = {}

    def is_settled():
        found.update(scrape(metrics))
        return {name: found[name] for name in expected} == expected

    wait_until(is_settled)
    return found


def agree(program):
    """End the server; fail unless its own statistics are what its metrics say. Return the metrics."""
    assert program.stop() == 0, program.output
    line, _, text = program.output.partition("counted ")[2].partition("\n")
    accepted, active, outcomes = json.loads(line)
    found = metrics_of(text)
    said = {
        re.search('outcome="(.+)"', name)[1].replace("_", " "): value
        for name, value in found.items()
        if name.startswith("socketkit_requests_ended")
    }
    assert {outcome: value for outcome, value in said.items() if value} == outcomes
    assert (found["socketkit_requests_accepted_total"], found["socketkit_requests_active"]) == (accepted, active)
    return found


def check_load(program, where, metrics, *, held=True):
    for _ in range(15):
        assert visit(where, b"hello").isdigit()
    for _ in range(3):
        visit(where, b"raise")
    with socket.create_connection(where, timeout=LATE, source_address=("127.0.0.7", 0)) as stranger:
        assert rest_of(stranger) == b""
    if held:
        with connect(where, "stream", LATE) as client:
            client.sendall(b"hold\n")
            assert client.recv(100).isdigit()
            settled(metrics, socketkit_requests_active=2, socketkit_handlers_running=1)
    found = settled(metrics, socketkit_requests_active=1, socketkit_handlers_running=0)  # the scrape itself
    handled = 18 + held
    assert found['socketkit_requests_ended_total{outcome="failed"}'] == 3
    assert found['socketkit_requests_ended_total{outcome="refused"}'] == 1
    assert found['socketkit_requests_refused_total{reason="network"}'] == 1
    assert found["socketkit_handler_wait_seconds_count"] == handled
    assert found["socketkit_handler_duration_seconds_count"] == handled
    assert found['socketkit_handler_duration_seconds_bucket{le="+Inf"}'] == handled
    assert 0 < found["socketkit_handler_duration_seconds_sum"] < LATE
    assert 0 < found["socketkit_handler_wait_seconds_sum"] < LATE
    queues = [name for name in found if name.startswith("socketkit_accept_queue_limit")]
    assert len(queues) == 2
    assert all(found[name] > 0 for name in queues)
    found = agree(program)
    assert found["socketkit_handlers_running"] == 0
    return found


@pytest.mark.parametrize("dispatcher", [*IN_ONE_PROCESS, *IN_SEVERAL])
def test_the_metrics_agree_with_the_statistics(dispatcher):
    with serving(dispatcher) as served:
        found = check_load(*served, held=dispatcher not in {"sync", "prefork:2/sync"})
    assert found["socketkit_workers_running"] == found["socketkit_workers_died_total"] == 0


@pytest.mark.parametrize("dispatcher", ["asyncio", "prefork:2/asyncio"])
def test_the_metrics_agree_for_asynchronous_handlers(dispatcher):
    with serving(dispatcher, ASYNC) as served:
        check_load(*served)


@pytest.mark.parametrize("dispatcher", ["prefork:2", "prefork:2/pool:2", "prefork:2/asyncio", "prefork:2/fork"])
def test_a_killed_worker_takes_its_requests_along_and_nothing_else(dispatcher):
    with serving(dispatcher) as (program, where, metrics):
        for _ in range(8):
            visit(where, b"hello")
        with connect(where, "stream", LATE) as client:
            client.sendall(b"hold\n")
            pid = int(client.recv(100))
            before = settled(metrics, socketkit_workers_running=2, socketkit_handlers_running=1, socketkit_requests_active=2)
            if "fork" in dispatcher.partition("/")[2]:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])  # its parent, the worker
            os.kill(pid, signal.SIGKILL)
            found = settled(metrics, socketkit_workers_died_total=1, socketkit_workers_running=2)
        assert found['socketkit_requests_ended_total{outcome="died"}'] >= 1
        assert found["socketkit_requests_accepted_total"] > before["socketkit_requests_accepted_total"]
        for _ in range(8):
            assert visit(where, b"hello").isdigit()
        settled(metrics, socketkit_handlers_running=0, socketkit_requests_active=1)
        found = agree(program)
        assert found['socketkit_requests_ended_total{outcome="died"}'] in {1, 2}  # and maybe a scrape whose answer had been sent


def test_a_killed_child_of_a_request_has_died():
    with serving("fork") as (program, where, metrics):
        for _ in range(3):
            visit(where, b"die")
            visit(where, b"hello")
        found = settled(metrics, socketkit_requests_active=1, socketkit_handlers_running=0)
        assert found['socketkit_requests_ended_total{outcome="died"}'] == 3
        agree(program)


def test_workers_that_are_replaced_leave_their_counts():
    with serving("prefork:2,max_requests=5") as (program, where, metrics):
        for _ in range(40):
            assert visit(where, b"hello").isdigit()
        found = settled(metrics, socketkit_workers_running=2, socketkit_handlers_running=0, socketkit_requests_active=1)
        assert found["socketkit_handler_duration_seconds_count"] == 40
        assert agree(program)["socketkit_workers_died_total"] == 0


@pytest.mark.parametrize("dispatcher", ["adaptive", "fork", "prefork:2", "prefork:2/pool:2", "prefork:2/sync", "prefork:2/asyncio"])
def test_a_server_of_datagrams_is_scraped_over_tcp(dispatcher):
    with serving(dispatcher, DATAGRAMS) as (program, where, metrics):
        for _ in range(20):
            assert ask(where, b"hello") == b"hello"
        found = settled(metrics, socketkit_handlers_running=0, socketkit_requests_active=1)
        assert found["socketkit_handler_duration_seconds_count"] == 20
        assert found["socketkit_handler_wait_seconds_count"] == 20
        assert found["socketkit_datagrams_dropped_total"] == 0
        agree(program)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
@pytest.mark.parametrize("dispatcher", ["adaptive", "fork", "prefork:2", "prefork:2/sync"])
def test_dropped_datagrams_are_those_that_the_system_has_told_the_server_of(dispatcher):
    with serving(dispatcher, DATAGRAMS, "flood") as (program, _, metrics):
        dropped = scrape(metrics)["socketkit_datagrams_dropped_total"]
        assert dropped > 0
        settled(metrics, socketkit_handler_duration_seconds_count=100 - dropped)
        assert agree(program)["socketkit_datagrams_dropped_total"] == dropped


LIMITS = {
    "pool:3": 3,
    "prefork:2/pool:3": 6,
    "prefork:2": 2 * Adaptive().workers,
    "fork:7": 7,
    "sync": 1,
    "thread": None,
    "asyncio,limit=500,workers=3": 3,
    "prefork:2/asyncio,limit=500,workers=3": 6,
}


def test_the_most_asynchronous_handlers_are_those_of_the_event_loop():
    with serving("asyncio,limit=500,workers=3", ASYNC) as (_, _, metrics):
        assert scrape(metrics)["socketkit_handlers_limit"] == 500


@pytest.mark.parametrize(("dispatcher", "limit"), LIMITS.items())
def test_the_most_handlers_are_those_of_the_dispatcher(dispatcher, limit):
    with serving(dispatcher) as (_, _, metrics):
        found = scrape(metrics)
        assert found.get("socketkit_handlers_limit") == limit
        assert found["socketkit_server_start_time_seconds"] == pytest.approx(time.time(), abs=LATE)
