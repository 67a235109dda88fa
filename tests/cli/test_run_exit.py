"""The end of a program under `socketkit run`: the interpreter waits for running requests as plain Python waits for their threads."""

import os
import socket
import sys

import pytest

from helpers.green import GREEN
from socketkit.testing.programs import GUARD, Program

PROGRAM = """
import socketserver, sys, threading

class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"hello\\n")
        self.wfile.write(self.rfile.readline().upper())

server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Upper)
server.daemon_threads = DAEMONS
print("port", server.server_address[1], flush=True)

def end():
    sys.stdin.read()
    server.shutdown()

if sys.argv[1] == "main thread":
    threading.Thread(target=end, daemon=True).start()
    server.serve_forever()
else:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    if sys.argv[1] == "shutdown":
        server.shutdown()
print("over", flush=True)
"""

OVERRIDES = ["thread", "pool", "adaptive", "asyncio", GREEN]


def program(folder, dispatcher, how, stdin, *, daemons):
    path = folder / "program.py"
    path.write_text(PROGRAM.replace("DAEMONS", str(daemons)))
    run = () if dispatcher is None else ("-m", "socketkit", "run", "--dispatcher", dispatcher)
    return Program(sys.executable, *run, str(path), how, stdin=stdin)


@pytest.mark.parametrize("how", ["main thread", "daemon thread", "shutdown"])
@pytest.mark.parametrize("dispatcher", [None, *OVERRIDES])
def test_a_running_request_is_answered_before_the_program_ends(tmp_path, dispatcher, how):
    if (dispatcher, how) == ("gevent", "shutdown"):
        pytest.skip("greenlets run only in the serving thread, which has ended")
    reader, writer = os.pipe()
    with program(tmp_path, dispatcher, how, reader, daemons=False) as running:
        os.close(reader)
        port = int(running.line(r"^port (\d+)")[0][1])
        with socket.create_connection(("127.0.0.1", port), timeout=GUARD) as client:
            assert client.recv(6) == b"hello\n"
            os.close(writer)
            running.line("^over")
            client.sendall(b"word\n")
            assert client.makefile("rb").read() == b"WORD\n"
        assert running.wait() == 0


@pytest.mark.parametrize("dispatcher", [None, *OVERRIDES[1:]])  # `thread` has an option of its own
def test_a_program_whose_requests_run_in_daemon_threads_ends_without_them(tmp_path, dispatcher):
    reader, writer = os.pipe()
    with program(tmp_path, dispatcher, "daemon thread", reader, daemons=True) as running:
        os.close(reader)
        port = int(running.line(r"^port (\d+)")[0][1])
        with socket.create_connection(("127.0.0.1", port), timeout=GUARD) as client:
            assert client.recv(6) == b"hello\n"
            os.close(writer)
            assert running.wait() == 0
        assert running.output.splitlines()[1:] == ["over"]
