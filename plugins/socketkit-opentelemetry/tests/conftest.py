"""Providers and a collector for the tests."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from otel_helpers import LATE, Collector, Measurements, Spans


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
