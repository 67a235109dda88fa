"""Handlers for servers in other processes: some say whose connection they got."""

from http.server import BaseHTTPRequestHandler

from socketkit import StreamRequestHandler


def tell(client_address):
    """Return a line: whose connection it is, which proxy it came by, and what the header said."""
    header = client_address.proxy
    return f"{tuple(client_address)!r} via {client_address.via!r}, {header!r}\n".encode()


class Upper(StreamRequestHandler):
    """Answers each line in capitals."""

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class Dot(StreamRequestHandler):
    """Answers each DNS query with no records. Source: RFC 7858, 3.3; RFC 1035, 4.2.2."""

    def handle(self):
        while size := self.rfile.read(2):
            query = self.rfile.read(int.from_bytes(size, "big"))
            reply = query[:2] + bytes((query[2] | 0x80, 0)) + query[4:]
            self.wfile.write(size + reply)


class Page(BaseHTTPRequestHandler):
    """Answers each GET with the same page."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"page")


class Tell(StreamRequestHandler):
    """Answers one line with whose connection it is."""

    def handle(self):
        if self.rfile.readline():
            self.wfile.write(tell(self.client_address))


class TellPage(BaseHTTPRequestHandler):
    """Answers each GET with whose connection it is."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = tell(self.client_address)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
