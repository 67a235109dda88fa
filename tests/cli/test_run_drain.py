"""An unmodified program that was given a dispatcher and a lifecycle ends well, too."""

import os
import signal
import socket
import sys

import pytest

from socketkit.testing.programs import Program, wait_until

PROGRAM = """
import os, socketserver, sys
class Hold(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        os.write(1, b"got %s\\n" % line.strip())  # in one piece: others write too
        if line == b"hold\\n": self.rfile.readline()
        self.wfile.write(line.upper())
with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Hold) as server:
    print("port", server.server_address[1], flush=True)
    server.serve_forever()
print("over", flush=True)
"""


@pytest.mark.parametrize("dispatcher", ["sync", "pool:1", "adaptive:1", "thread"])
def test_who_is_in_the_queue_when_it_is_told_to_stop_is_answered(tmp_path, dispatcher):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    arguments = ("-u", "-m", "socketkit", "run", "--dispatcher", dispatcher, "--lifecycle", "graceful:10", str(script))
    with Program(sys.executable, *arguments) as program:
        port = int(program.line(r"port (\d+)")[0][1])
        busy = socket.create_connection(("127.0.0.1", port), timeout=10)
        busy.sendall(b"hold\n")
        program.line("got hold")
        waiting = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(3)]
        for client in waiting:
            client.sendall(b"wait\n")
        if dispatcher == "thread":
            program.line("got wait", 3)
        os.kill(program.pid, signal.SIGTERM)
        busy.sendall(b"go on\n")
        for client, answer in ((busy, b"HOLD\n"), *((client, b"WAIT\n") for client in waiting)):
            with client:
                assert client.makefile("rb").read() == answer
        program.line("over")


DAEMONS = """
import socketserver, sys
def print(*words, flush):  # in one piece, because two threads print
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
class Hold(socketserver.StreamRequestHandler):
    def handle(self):
        print("got", self.rfile.readline(), flush=True)
        print("then", self.rfile.readline(), flush=True)
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = sys.argv[1] == "daemon"
with Server(("127.0.0.1", 0), Hold) as server:
    print("port", server.server_address[1], flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("over", flush=True)
"""

PLAIN = ()
RUN = ("-m", "socketkit", "run", "--dispatcher")


@pytest.mark.parametrize("threads", ["daemon", "joined"])
@pytest.mark.parametrize(
    "start", [PLAIN, (*RUN, "thread"), (*RUN, "executor"), (*RUN, "pool")], ids=lambda start: (start or ["python"])[-1]
)
def test_a_silent_client_holds_a_program_only_if_its_threads_are_no_daemons(tmp_path, start, threads):
    script = tmp_path / "program.py"
    script.write_text(DAEMONS)
    with Program(sys.executable, "-u", *start, str(script), threads) as program:
        port = int(program.line(r"port (\d+)")[0][1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"hold\n")
            program.line("got")
            program.send_signal(signal.SIGINT)
            program.line("interrupted")
            if threads == "joined":
                client.sendall(b"go on\n")
                program.line("then b'go on")
            assert program.wait() == 0
            program.line("^over$")


def _refuses(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


GRACEFUL = ("-m", "socketkit", "run", "--lifecycle")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("more", [(), ("--dispatcher", "executor")], ids=lambda more: "-".join(more) or "own")
def test_a_drain_waits_for_daemon_threads_too(tmp_path, number, more):
    script = tmp_path / "program.py"
    script.write_text(DAEMONS)
    with Program(sys.executable, "-u", *GRACEFUL, "graceful:10", *more, str(script), "daemon") as program:
        port = int(program.line(r"port (\d+)")[0][1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"hold\n")
            program.line("got")
            program.send_signal(number)
            wait_until(lambda: _refuses(port))
            client.sendall(b"go on\n")
            program.line("then b'go on")
            assert program.wait() == 0
            assert program.output.index("then") < program.output.index("over")


def test_a_drain_says_that_it_has_cut_a_daemon_thread(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(DAEMONS)
    with Program(sys.executable, "-u", *GRACEFUL, "graceful:100ms", str(script), "daemon") as program:
        port = int(program.line(r"port (\d+)")[0][1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"hold\n")
            program.line("got")
            program.send_signal(signal.SIGTERM)
            assert program.wait() == 0
            program.line("0 finished, 1 forced, 0 stuck")
