"""Whole programs: local clusters, signals, prefork, and what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile

import pytest
from dask_clusters import ENVIRONMENT, GUARD, Held, Line, Program, is_gone, until

SERVE = """
import sys
from socketkit import *
from socketkit_dask import Dask
from dask_replies import Replies

if __name__ == "__main__":
    with Server(TCP("127.0.0.1", 0), Replies, dispatcher={dispatcher}, lifecycle=Graceful({drain})) as server:
        print("port", server.addresses[0][1])
        server.serve_forever()
    print("outcomes", dict(server.stats().outcomes))
"""


def serving(dispatcher, drain=20):
    return Program(SERVE.format(dispatcher=dispatcher, drain=drain))


def address(program):
    return "127.0.0.1", int(program.line("port"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_lets_messages_finish_and_then_ends_the_local_cluster_without_a_word(number, tmp_path):
    with Held(tmp_path) as held, serving("Dask(workers=1)") as program, Line(address(program)) as client:
        client.tell(str(held))
        worker = held.begun()
        os.killpg(program.pid, number)
        held.leave()
        assert client.hear() == f"held by {worker}"
        assert program.wait() == 0
        assert is_gone(worker)
        assert program.output.splitlines()[1:] == ["outcomes {'finished': 1}"]


def test_a_second_signal_ends_what_still_runs(tmp_path):
    with Held(tmp_path) as held, serving("Dask(workers=1)", drain=60) as program, Line(address(program)) as client:
        client.tell(str(held))
        worker = held.begun()
        os.kill(program.pid, signal.SIGTERM)
        until(lambda: refuses(client.socket.getpeername()))  # the drain has begun; two signals at once would count as one
        os.kill(program.pid, signal.SIGTERM)
        assert client.hear() == ""
        assert program.wait() == 0
        assert is_gone(worker)


def refuses(where):
    try:
        socket.create_connection(where, timeout=GUARD).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_local_cluster_ends_when_its_server_is_killed():
    with serving("Dask(workers=1)") as program, Line(address(program)) as client:
        worker = int(client.ask("pid"))
        os.kill(program.pid, signal.SIGKILL)
        until(lambda: is_gone(worker))


def test_prefork_workers_have_a_client_each(cluster):
    with serving(f'Prefork(2, Dask("{cluster.address}"))') as program:
        where = address(program)
        for number in range(10):
            with Line(where) as client:
                assert client.ask(f"upper a{number}") == f"A{number}"
        os.kill(program.pid, signal.SIGTERM)
        assert program.wait() == 0
        assert program.output.splitlines()[1:] == ["outcomes {'finished': 10}"]


def test_a_local_cluster_leaves_nothing_behind():
    source = """
import os, sys, tempfile, threading
from multiprocessing import resource_tracker
from socketkit import *
from socketkit.testing.leaks import Account
from socketkit_dask import Dask
from dask_clusters import Line
from dask_replies import Replies

if __name__ == "__main__":
    def serve():
        with Server(TCP("127.0.0.1", 0), Replies, dispatcher=Dask(workers=1)).start() as server, Line(server.addresses[0]) as client:
            assert client.ask("upper a") == "A"
    serve()  # imports, and Dask's own threads, which stay
    before = Account.take()
    serve()
    assert before.left_since() == [], before.left_since()
    assert os.listdir(tempfile.gettempdir()) == [], os.listdir(tempfile.gettempdir())
    print("clean")
"""
    with tempfile.TemporaryDirectory() as folder:
        env = {**ENVIRONMENT, "TMPDIR": folder}
        ran = subprocess.run([sys.executable, "-c", source], env=env, capture_output=True, text=True, timeout=50, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "clean\n", "")


def test_a_handler_of_the_program_itself_travels_by_value(cluster):
    source = f"""
from socketkit import *
from socketkit_dask import Dask
from dask_clusters import Line

class Own(MessageHandler):
    def reply(self, message, client_address):
        return message.upper()

with Server(TCP("127.0.0.1", 0), Own, dispatcher=Dask("{cluster.address}")).start() as server, Line(server.addresses[0]) as client:
    print(client.ask("own"))
"""
    ran = subprocess.run([sys.executable, "-c", source], env=ENVIRONMENT, capture_output=True, text=True, timeout=50, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "OWN\n", "")
