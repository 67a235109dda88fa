"""Programs end, whatever their servers are doing.

The interpreter itself waits for non-daemon threads of `thread`, and for the threads of a ThreadPoolExecutor.
"""

import signal
import sys
import time

import pytest

from helpers.support import NO_DESCRIPTOR, python

PROGRAM = """
import os, resource, socket, sys, threading, time
from socketkit import Graceful, Server, TCP

inside = threading.Event()

def handler(request, client_address, server):
    inside.set()
    {body}

server = Server(TCP("127.0.0.1", 0), handler, dispatcher={dispatcher!r}, lifecycle=Graceful(drain=0.2)).start()
client = socket.create_connection(server.addresses[0])
client.sendall(b"x")
inside.wait()
{after}
print("over", flush=True)
"""


@pytest.mark.parametrize("dispatcher", ["thread,daemon=true", "pool:2", "adaptive", "asyncio"])
def test_a_program_ends_although_a_handler_does_not(dispatcher):
    began = time.monotonic()
    done = python(PROGRAM.format(body="threading.Event().wait()", dispatcher=dispatcher, after=""), guard=10)
    assert done.stdout == "over\n"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("dispatcher", ["thread,daemon=true", "pool:2", "adaptive", "asyncio"])
def test_a_program_ends_although_no_descriptor_is_left(dispatcher):
    done = python(PROGRAM.format(body="request.recv(100); request.recv(100)", dispatcher=dispatcher, after=NO_DESCRIPTOR), guard=10)
    assert done.stdout == "over\n"


@pytest.mark.parametrize("dispatcher", ["thread,daemon=true", "pool:2", "adaptive", "asyncio"])
def test_a_program_ends_although_no_descriptor_is_left_and_a_thread_runs_on(dispatcher):
    done = python(PROGRAM.format(body="while True: time.sleep(0.0005)", dispatcher=dispatcher, after=NO_DESCRIPTOR), guard=10)
    assert done.stdout == "over\n"


def test_the_standard_library_aborts_there_before_python_3_14():
    source = """
import os, resource, socket, socketserver, threading, time

inside = threading.Barrier(21)  # of twenty threads, one certainly goes on while the program ends

class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        inside.wait()
        while True:
            time.sleep(0.0005)

server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
clients = [socket.create_connection(server.server_address) for _ in range(20)]
inside.wait()
"""
    hangs = sys.version_info >= (3, 14)  # so does each daemon thread at exit, which before loads a library to end itself
    python(source + NO_DESCRIPTOR, guard=10, code=0 if hangs else -signal.SIGABRT)
