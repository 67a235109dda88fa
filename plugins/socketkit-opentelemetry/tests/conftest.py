"""Tests the plugin from its sources. Every test leaves the process as it found it."""

import contextlib
import gzip
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from socketkit.testing.pytest_plugin import nothing_left_behind  # noqa: F401 - importing a fixture activates it

HERE = Path(__file__).parent
SOURCES = HERE.parent / "src"
sys.path[:0] = [str(SOURCES), str(HERE)]

from otel_helpers import LATE, Collector, Measurements, Spans  # noqa: E402 - from the path above


@pytest.fixture
def spans():
    found = Spans()
    yield found
    found.provider.shutdown()


@pytest.fixture
def measurements():
    found = Measurements()
    yield found
    found.provider.shutdown()


@pytest.fixture
def collector():
    found = Collector()

    class Receives(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = LATE

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.receive(self.path, gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_words):
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receives) as server:
        server.daemon_threads = False
        server.block_on_close = True
        found.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


GUARD = "import faulthandler; faulthandler.dump_traceback_later({}, exit=True)\n"


@pytest.fixture
def program():
    """Start a program from its source; a program that hangs prints its stacks and ends."""
    with contextlib.ExitStack() as started:

        def start(source, *arguments, **environment):
            command = [sys.executable, "-c", GUARD.format(LATE) + source, *arguments]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = started.enter_context(subprocess.Popen(command, env={"PYTHONPATH": str(SOURCES), **environment}, **pipes))
            started.callback(process.kill)
            return process

        yield start
