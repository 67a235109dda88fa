"""The numbers agree with the server's own under each dispatcher, whichever process answers, and when processes are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from prometheus_support import LATE, ask, metrics_of, scrape

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
        print(*server.urls, flush=True)

def main(handler=Obeys):
    import logging
    logging.getLogger("socketkit").addHandler(logging.NullHandler())
    listen = ["tcp://127.0.0.1:0", "tcp+prometheus://127.0.0.1:0"]
    server = Server(listen, handler, dispatcher=sys.argv[1], limits=dict(deny=["127.0.0.7"]), observers=[Says()])
    server.serve_forever()
    stats = server.stats()
    print(json.dumps([stats.accepted, stats.active, dict(stats.outcomes)]))
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

IN_ONE_PROCESS = ["sync", "thread", "pool:4", "adaptive", "executor", "asyncio"]
IN_SEVERAL = ["fork", "prefork:2", "prefork:2/pool:2", "prefork:2/sync", "prefork:2/asyncio", "prefork:2/fork"]


def serve(start, dispatcher, source="main()"):
    program = start(SERVER + source, dispatcher)
    return program, *[(host, int(port)) for host, port in re.findall(r"//(.+?):(\d+)", program.line())]


def settled(address, **expected):
    """Scrape until the samples have these values, and return all of them."""
    deadline = time.monotonic() + LATE
    while True:
        found = scrape(address)
        seen = {name: found[name] for name in expected}
        if seen == expected:
            return found
        assert time.monotonic() < deadline, (seen, expected)


def agree(rest):
    """Fail unless the server's own statistics at its end are what its metrics say; return the metrics."""
    line, _, text = rest.partition("\n")
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


def check_load(program, address, metrics, *, held=True):
    for _ in range(15):
        assert ask(address, "hello").isdigit()
    for _ in range(3):
        ask(address, "raise")
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.7", 0))
        stranger.connect(address)
        assert stranger.makefile("rb").read() == b""
    if held:
        with socket.create_connection(address, timeout=LATE) as client:
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
    found = agree(program.stop())
    assert found["socketkit_handlers_running"] == 0
    return found


@pytest.mark.parametrize("dispatcher", [*IN_ONE_PROCESS, *IN_SEVERAL])
def test_the_metrics_agree_with_the_statistics(start, dispatcher):
    found = check_load(*serve(start, dispatcher), held=dispatcher not in {"sync", "prefork:2/sync"})
    assert found["socketkit_workers_running"] == found["socketkit_workers_died_total"] == 0


@pytest.mark.parametrize("dispatcher", ["asyncio", "prefork:2/asyncio"])
def test_the_metrics_agree_for_asynchronous_handlers(start, dispatcher):
    check_load(*serve(start, dispatcher, ASYNC))


@pytest.mark.parametrize("dispatcher", ["prefork:2", "prefork:2/pool:2", "prefork:2/asyncio", "prefork:2/fork"])
def test_a_killed_worker_takes_its_requests_along_and_nothing_else(start, dispatcher):
    program, address, metrics = serve(start, dispatcher)
    for _ in range(8):
        ask(address, "hello")
    with socket.create_connection(address, timeout=LATE) as client:
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
        assert ask(address, "hello").isdigit()
    settled(metrics, socketkit_handlers_running=0, socketkit_requests_active=1)
    found = agree(program.stop())
    assert found['socketkit_requests_ended_total{outcome="died"}'] in {1, 2}  # and maybe a scrape whose answer had been sent


def test_a_killed_child_of_a_request_has_died(start):
    program, address, metrics = serve(start, "fork")
    for _ in range(3):
        ask(address, "die")
        ask(address, "hello")
    found = settled(metrics, socketkit_requests_active=1, socketkit_handlers_running=0)
    assert found['socketkit_requests_ended_total{outcome="died"}'] == 3
    agree(program.stop())


def test_workers_that_are_replaced_leave_their_counts(start):
    program, address, metrics = serve(start, "prefork:2,max_requests=5")
    for _ in range(40):
        assert ask(address, "hello").isdigit()
    found = settled(metrics, socketkit_workers_running=2, socketkit_handlers_running=0, socketkit_requests_active=1)
    assert found["socketkit_handler_duration_seconds_count"] == 40
    assert agree(program.stop())["socketkit_workers_died_total"] == 0


@pytest.mark.parametrize(("dispatcher", "limit"), [("pool:3", 3), ("prefork:2/pool:3", 6), ("fork:7", 7), ("sync", 1), ("thread", None)])
def test_the_most_handlers_are_those_of_the_dispatcher(start, dispatcher, limit):
    _, _, metrics = serve(start, dispatcher)
    found = scrape(metrics)
    assert found.get("socketkit_handlers_limit") == limit
    assert found["socketkit_server_start_time_seconds"] == pytest.approx(time.time(), abs=LATE)
