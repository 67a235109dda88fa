"""A handler that upgrades its connection when it is told to, and its clients."""

import contextlib
import functools
import socket
import ssl

from socketkit import StreamRequestHandler
from socketkit.testing.certificates import authority, certificate

LATE = 20


class Upper(StreamRequestHandler):
    """Answers lines; "starttls" and "raise" are commands. `context` is that of `upgrade_tls`."""

    context = None

    def handle(self):
        while line := self.rfile.readline():
            if line == b"starttls\n":
                self.wfile.write(b"go\n")
                self.upgrade_tls(self.context)
            elif line == b"raise\n":
                raise ZeroDivisionError
            else:
                self.answer(line)

    def answer(self, line):
        self.wfile.write(line.upper())


class UpperWithContext(Upper):
    @property
    def context(self):
        return server_side(*certificate())


@functools.cache
def server_side(cert, key):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return context


def trusting():
    return ssl.create_default_context(cafile=authority("Authority"))


def connect(address):
    return socket.create_connection(address, timeout=LATE)


def read_line(sock):
    line = b""
    while not line.endswith(b"\n"):
        line += sock.recv(1)
    return line


def asked(sock):
    """Ask for the upgrade; return once the server waits for the handshake."""
    sock.sendall(b"starttls\n")
    assert read_line(sock) == b"go\n"


def encrypted(sock):
    """Ask for the upgrade, and return the encrypted connection, which raises at an end without close_notify."""
    asked(sock)
    return trusting().wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)


def to_the_end(sock):
    """Return what comes until the connection ends, in whatever way."""
    received = b""
    with contextlib.suppress(ConnectionError, ssl.SSLEOFError):  # SSLEOFError: without close_notify
        while more := sock.recv(10_000):
            received += more
    return received
