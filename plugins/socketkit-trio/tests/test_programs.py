"""Whole programs: signals, worker processes, and clients that others have written."""

from __future__ import annotations

import os
import shutil

import pytest
from socketkit_trio import Trio, TrioStreamRequestHandler

from socketkit.testing.programs import python, run

START = """
import os, signal, socket, sys, threading
import trio
from socketkit import Classic, Graceful, Prefork, Server
from socketkit_trio import Trio, TrioStreamRequestHandler

def say(*words):
    "Print a line at once, which the lines of other threads cannot come between."
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Greeting(TrioStreamRequestHandler):
    async def handle(self):
        await self.stream.send_all(b"%d" % os.getpid())
        try:
            await self.stream.receive_some()
        except trio.Cancelled:
            say("cancelled")
            raise

def signalled(*signals):
    "Connect, wait for the greeting, and send signals to this process."
    with socket.create_connection(server.addresses[0], timeout=10) as client:
        say(int(client.recv(100)) == os.getpid())
        for each in signals:
            os.kill(os.getpid(), each)
        say(client.recv(100))
"""


def program(source):
    """Run Python source to its end, in which no warning and no Cancelled may be seen; return its output."""
    ended = python(source, env={**os.environ, "PYTHONWARNINGS": "error"})
    assert "Cancelled" not in ended.stderr, ended.stderr
    return ended.stdout


def test_ctrl_c_ends_serve_forever_in_the_main_thread():
    output = program(
        START
        + """
server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Trio(), lifecycle=Classic())
try:
    with server:
        other = threading.Thread(target=signalled, args=(signal.SIGINT,))
        other.start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("interrupted")
            raise
except KeyboardInterrupt:
    other.join()
    say(server.stats().active)
"""
    )
    assert output.splitlines()[:2] == ["True", "interrupted"]
    assert output.splitlines()[-1] == "0"


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_drains_and_at_the_deadline_cancels(number):
    output = program(
        START
        + f"""
class Stubborn(Greeting):
    async def handle(self):
        await self.stream.send_all(b"%d" % os.getpid())
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(5, shield=True):
                await trio.sleep(0)
                say("cleaned up")

server = Server("tcp://127.0.0.1:0", Stubborn, dispatcher=Trio(), lifecycle=Graceful(drain=0.1))
with server:
    other = threading.Thread(target=signalled, args=(signal.{number},))
    other.start()
    server.serve_forever()
    other.join()
say(server.stats().outcomes)
"""
    )
    assert sorted(output.splitlines()) == ["True", "b''", "cleaned up", "{'failed': 1}"]


def test_ctrl_c_ends_a_single_request():
    output = program(
        START
        + """
server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Trio())
with server:
    other = threading.Thread(target=signalled, args=(signal.SIGINT,))
    other.start()
    try:
        server.handle_request()
    except KeyboardInterrupt:
        say("interrupted")
    other.join()
say(server.stats().active)
"""
    )
    assert output.splitlines()[0] == "True"
    assert {"cancelled", "interrupted", "b''"} < set(output.splitlines())
    assert output.splitlines()[-1] == "0"


def test_it_serves_in_worker_processes():
    output = program(
        START
        + """
server = Server("tcp://127.0.0.1:0", Greeting, dispatcher="prefork:2/trio")
def clients():
    pids = set()
    for _ in range(20):
        with socket.create_connection(server.addresses[0], timeout=10) as client:
            pids.add(int(client.recv(100)))
            client.sendall(b"x")
            assert client.recv(100) == b""
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids, pids
    server.stop(wait=False)
with server:
    other = threading.Thread(target=clients)
    other.start()
    server.serve_forever()
    other.join()
print(server.stats().outcomes)
"""
    )
    assert output == "{'finished': 20}\n"


def test_a_handler_may_start_processes_and_threads():
    output = program(
        """
import socket, sys, trio
from socketkit import Server
from socketkit_trio import Trio, TrioStreamRequestHandler

class Runs(TrioStreamRequestHandler):
    async def handle(self):
        ended = await trio.run_process([sys.executable, "-c", "print('from a process')"], capture_stdout=True)
        await self.stream.send_all(ended.stdout + await trio.to_thread.run_sync(lambda: b"and a thread"))

with Server("tcp://127.0.0.1:0", Runs, dispatcher=Trio()).start() as server:
    with socket.create_connection(server.addresses[0], timeout=20) as client, client.makefile("rb") as file:
        print(file.read().decode())
"""
    )
    assert output == "from a process\nand a thread\n"


def test_looking_up_its_name_does_not_import_trio():
    output = program(
        """
import sys
from socketkit import Server, StreamRequestHandler
server = Server("tcp://127.0.0.1:0", StreamRequestHandler, dispatcher="trio")
print("trio" in sys.modules, server.dispatcher)
"""
    )
    assert output == "False Trio(limit=10000, workers=32)\n"


def test_a_server_with_trio_does_not_import_asyncio():
    output = program(
        START
        + """
with Server("tcp://127.0.0.1:0", Greeting, dispatcher="trio").start() as server:
    with socket.create_connection(server.addresses[0], timeout=10) as client:
        assert client.recv(100)
say("asyncio" in sys.modules)
"""
    )
    assert output == "False\n"


# --- clients -----------------------------------------------------------------------------------------------------------


class Pings(TrioStreamRequestHandler):
    """Answers each PING of the Redis protocol, and nothing else: redis-benchmark first asks for the configuration."""

    async def handle(self):
        rest = b""
        while data := await self.stream.receive_some():
            *commands, rest = (rest + data).split(b"\r\n*")
            if rest.endswith(b"\r\n"):
                commands, rest = [*commands, rest], b"\r\n"
            answers = [b"+PONG\r\n" if b"PING" in each else b"-ERR\r\n" for each in commands if each]
            if answers:
                await self.stream.send_all(b"".join(answers))


@pytest.mark.skipif(shutil.which("redis-benchmark") is None, reason="needs redis-benchmark")
@pytest.mark.parametrize("options", [(), ("-P", "16")], ids=["one by one", "pipelined"])
def test_redis_benchmark_is_served(serve, options):
    served = serve(Pings, dispatcher=Trio())
    where = ("-h", "127.0.0.1", "-p", str(served.address[1]))
    command = ("redis-benchmark", *where, "-t", "ping_mbulk", "-n", "2000", "-c", "20", "-q", *options)
    assert "requests per second" in run(*command).stdout


class Pages(TrioStreamRequestHandler):
    """Answers requests of HTTP, one after another on each connection."""

    async def handle(self):
        rest = b""
        while data := await self.stream.receive_some():
            *heads, rest = (rest + data).split(b"\r\n\r\n")
            for head in heads:
                body = head.split()[1] + b"\n"
                await self.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_is_served(serve):
    served = serve(Pages, dispatcher=Trio())
    where = f"http://127.0.0.1:{served.address[1]}"
    assert run("curl", "-sS", f"{where}/one", f"{where}/two").stdout == "/one\n/two\n"
    served.server.stop()
    assert served.server.stats().outcomes == {"finished": 1}
