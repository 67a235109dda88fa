"""One handler of each kind, all of which reverse a line, and a client that checks the reply."""

import logging
import os
import socket
import tempfile
from http.server import BaseHTTPRequestHandler

from socketkit import (
    AsyncDatagramRequestHandler,
    AsyncStreamRequestHandler,
    ConversationHandler,
    DatagramRequestHandler,
    Graceful,
    MessageHandler,
    Server,
    StreamRequestHandler,
)
from socketkit.errors import SocketkitError


def function(request, client_address, server):
    if isinstance(request, tuple):
        request[1].sendto(request[0][::-1], client_address)
    else:
        request.sendall(request.recv(100)[-2::-1] + b"\n")


class Stream(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line[-2::-1] + b"\n")


class Datagram(DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.packet[::-1])


class Conversation(ConversationHandler):
    def handle_one_request(self):
        self.wfile.write(self.rfile.readline()[-2::-1] + b"\n")


class Message(MessageHandler):
    def reply(self, message, client_address):
        return message[::-1]


class AsyncStream(AsyncStreamRequestHandler):
    async def handle(self):
        self.writer.write((await self.reader.readline())[-2::-1] + b"\n")


class AsyncDatagram(AsyncDatagramRequestHandler):
    async def handle(self):
        await self.reply(self.packet[::-1])


class Http(BaseHTTPRequestHandler):
    def do_GET(self):
        self.wfile.write(self.path[::-1].encode() + b"\n")

    def log_message(self, *args):
        pass


def outcome(url, dispatcher, handler):
    """Return "served" if the handler answers, or the error message if the combination is refused."""
    logging.captureWarnings(True)  # some pairings fork a worker beside the serving thread
    logging.disable(logging.CRITICAL)
    try:
        server = Server(url, f"helpers.pairing_handlers:{handler}", dispatcher=dispatcher, lifecycle=Graceful(drain=5))
    except SocketkitError as error:
        return str(error)
    try:
        server.start()
    except SocketkitError as error:
        return str(error)
    with server:
        return "served" if answers(server, url.partition(":")[0], handler) else "neither"


def answers(server, scheme, handler):
    address, family = server.addresses[0], socket.AF_UNIX if scheme.startswith("unix") else socket.AF_INET
    if scheme in {"tcp", "unix", "memory"}:
        with server.connect() if scheme == "memory" else socket.socket(family) as client:
            client.settimeout(10)
            if scheme != "memory":
                client.connect(address)
            client.sendall(b"GET around\n" if handler == "Http" else b"around\n")
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(100), b"")) == b"dnuora\n"
    with socket.socket(family, socket.SOCK_DGRAM) as client, tempfile.TemporaryDirectory() as folder:
        client.settimeout(10)
        if family == socket.AF_UNIX:
            client.bind(os.path.join(folder, "client"))
        client.sendto(b"around", address)
        return client.recv(100) == b"dnuora"
