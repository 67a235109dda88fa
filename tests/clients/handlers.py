"""What the client programs talk to: handlers as a user would write them."""

import struct
from http.server import BaseHTTPRequestHandler

from socketkit import BaseRequestHandler, StreamRequestHandler


class Pong(StreamRequestHandler):
    """Answers each inline command of the Redis protocol with +PONG."""

    def handle(self):
        for line in self.rfile:
            if line.startswith(b"*"):  # an array, two lines for each element: the benchmark asks for a configuration first
                for _ in range(2 * int(line[1:])):
                    self.rfile.readline()
                self.wfile.write(b"-ERR there is only PING\r\n")
            else:
                self.wfile.write(b"+PONG\r\n")


class Resolver(BaseRequestHandler):
    """Answers each DNS question with the one address that it knows. Source of the format: RFC 1035, section 4."""

    ADDRESS = bytes((192, 0, 2, 1))
    ANSWER = 0x8400  # a response, authoritative
    RECURSION_DESIRED = 0x0100  # copied from the question

    def handle(self):
        packet, socket = self.request
        identifier, flags, questions = struct.unpack_from("!3H", packet)
        if questions != 1:
            return
        end = 12
        while packet[end]:  # labels, each with its length before it
            end += 1 + packet[end]
        question = packet[12 : end + 5]  # the name, its closing zero, type and class
        header = struct.pack("!6H", identifier, self.ANSWER | flags & self.RECURSION_DESIRED, 1, 1, 0, 0)
        name = 0xC000 | 12  # a pointer to the question's
        record = struct.pack("!3HLH", name, 1, 1, 60, len(self.ADDRESS)) + self.ADDRESS
        socket.sendto(header + question + record, self.client_address)


class Page(BaseHTTPRequestHandler):
    """Answers each GET with the path that was asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *arguments):
        pass  # a client on a Unix socket has no address to log
