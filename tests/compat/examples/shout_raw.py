"""Answers one message per connection in capitals, straight from the socket. Says on standard error where it listens."""

import socketserver
import sys


class Shout(socketserver.BaseRequestHandler):
    def handle(self):
        message = self.request.recv(1024).strip()
        print(f"{self.client_address[0]} wrote:")
        print(message)
        self.request.sendall(message.upper())


if __name__ == "__main__":
    with socketserver.TCPServer(("localhost", 0), Shout) as server:
        print("port", server.server_address[1], file=sys.stderr)
        server.serve_forever()
