"""The standard library's own servers on the drop-in: as their classes say, and under each dispatcher."""

import pytest

from compat.classic import program
from helpers.dispatchers import EVERY_IN_PLACE

DISPATCHERS = ["", *EVERY_IN_PLACE]

SETUP = """
import socket, threading
from compat.classic import WAIT, looping, serving, talk
from socketkit.composition import config

drop_in = sys.modules["socketserver"]
if sys.argv[1]:
    drop_in._Override.choose(config.dispatcher(sys.argv[1]))
"""


@pytest.fixture(params=DISPATCHERS, ids=lambda name: name or "as the class says")
def serve(request):
    """Run a program whose server runs under the dispatcher; return what it prints."""
    return lambda source: program(SETUP + source, request.param)


def test_http_server_with_and_without_keep_alive(serve):
    source = """
import http.client, http.server, os
assert http.server.HTTPServer.__mro__[1] is drop_in.TCPServer
assert issubclass(http.server.ThreadingHTTPServer, drop_in.ThreadingMixIn)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", len(body))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.path = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.do_GET()

    def log_message(self, *_):
        pass

for server_class in (http.server.HTTPServer, http.server.ThreadingHTTPServer):
    for version in ("HTTP/1.0", "HTTP/1.1"):
        Handler.protocol_version = version
        server = server_class(("127.0.0.1", 0), Handler)
        with serving(server):
            client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            bodies, sockets = [], set()
            for number in range(3):
                last = {"Connection": "close"} if number == 2 else {}  # a child holds a copy of the client's socket
                method, path, body = [("GET", f"/{number}", None), ("POST", "/", "/posted")][number % 2]
                client.request(method, path, body, last)
                sockets.add(client.sock.getsockname())
                bodies.append(client.getresponse().read().decode())
            client.close()
        print(version, *bodies, len(sockets))
"""
    expected = "HTTP/1.0 /0 /posted /2 3\nHTTP/1.1 /0 /posted /2 1\n"
    assert serve(source) == expected * 2


def test_http_server_serves_files(serve):
    source = """
import functools, http.client, http.server, pathlib, tempfile
with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder, "page.txt").write_text("contents of a page")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    http.server.SimpleHTTPRequestHandler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    with serving(server):
        for path in ("/page.txt", "/none"):
            client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            client.request("GET", path)
            reply = client.getresponse()
            print(reply.status, len(reply.read()) if reply.status == 200 else "")
            client.close()
"""
    assert serve(source) == "200 18\n404 \n"


def test_xmlrpc_server(serve):
    source = """
import xmlrpc.client, xmlrpc.server
assert xmlrpc.server.SimpleXMLRPCServer.__bases__[0] is drop_in.TCPServer

with xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False, allow_none=True) as server:
    server.register_function(pow)
    server.register_introspection_functions()
    with looping(server), xmlrpc.client.ServerProxy("http://127.0.0.1:%d" % server.server_address[1]) as proxy:
        print(proxy.pow(2, 10), "pow" in proxy.system.listMethods())
        try:
            proxy.pow("x", 1)
        except xmlrpc.client.Fault as fault:
            print("TypeError" in fault.faultString)
"""
    assert serve(source) == "1024 True\nTrue\n"


def test_wsgiref(serve):
    source = """
import http.client
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.validate import validator

class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass

@validator
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode(), b" ", environ["SERVER_PORT"].encode()]

threaded = type("Threaded", (drop_in.ThreadingMixIn, WSGIServer), {})
for server_class in (WSGIServer, threaded):
    server = make_server("127.0.0.1", 0, application, server_class, Quiet)
    with serving(server):
        client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        client.request("GET", "/somewhere")
        print(client.getresponse().read().decode() == f"/somewhere {server.server_port}")
        client.close()
"""
    assert serve(source) == "True\nTrue\n"


def test_logging_config_listen(serve):
    source = """
import json, logging, logging.config, struct

received = threading.Event()

def verify(data):
    received.set()
    return data

listener = logging.config.listen(0, verify)
assert isinstance(listener, threading.Thread)
listener.start()
assert listener.ready.wait(10)
config = {"version": 1, "loggers": {"configured": {"level": "ERROR"}}, "disable_existing_loggers": False}
data = json.dumps(config).encode()
with socket.create_connection(("localhost", listener.port), 10) as client:
    client.sendall(struct.pack(">L", len(data)) + data)
    client.recv(1)
if sys.argv[1] != "fork":  # a child configures itself only, as a forking server's always would
    assert received.wait(10)
    print(logging.getLogger("configured").level == logging.ERROR)
else:
    print(True)
logging.config.stopListening()
listener.join(10)
print(listener.is_alive())
"""
    assert serve(source) == "True\nFalse\n"


def test_pydoc_server(serve):
    source = """
import pydoc, urllib.request
thread = pydoc._start_server(lambda url, content_type: f"page of {url} as {content_type}", "127.0.0.1", 0)
assert thread.serving, thread.error
with urllib.request.urlopen(thread.url + "topics.html", timeout=10) as reply:
    print(reply.read().decode())
thread.stop()
print(thread.is_alive())
"""
    assert serve(source) == "page of /topics.html as text/html\nFalse\n"
