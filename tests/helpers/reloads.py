"""`socketkit serve` in its own process, which reloads its configuration on SIGHUP, and its service manager."""

import signal

from helpers.support import SERVE, Managed

GIVEN = """
import os

def upper(request, client_address, server):
    if isinstance(request, tuple):
        request[1].sendto(request[0].upper(), client_address)
    else:
        request.sendall(request.recv(1000).upper())

def lower(request, client_address, server):
    if isinstance(request, tuple):
        request[1].sendto(request[0].lower(), client_address)
    else:
        request.sendall(request.recv(1000).lower())

def pid(request, client_address, server):
    request.recv(1)
    request.sendall(b"%d" % os.getpid())

def chat(request, client_address, server):
    request.sendall(b"hello")
    while data := request.recv(1000):
        request.sendall(data.upper())

from http.server import BaseHTTPRequestHandler

class Http(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments):
        pass
"""


class Service(Managed):
    """`socketkit serve`, and its service manager."""

    def __init__(self, *arguments, **environment):
        super().__init__(".", *SERVE, *arguments, env=environment)

    def reload(self):
        """Send SIGHUP; return the message to the manager after the reload."""
        self.send_signal(signal.SIGHUP)
        return self.reloaded()

    def reloaded(self):
        while (said := self.told()) == ["WATCHDOG=1"]:
            pass
        assert said[0] == "RELOADING=1", said
        while (said := self.told()) == ["WATCHDOG=1"]:
            pass
        return said
