"""Answers one line per connection in capitals, through files. Says on standard error where it listens."""

import socketserver
import sys


class Shout(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline().strip()
        print(f"{self.client_address[0]} wrote:")
        print(line)
        self.wfile.write(line.upper())


if __name__ == "__main__":
    with socketserver.TCPServer(("localhost", 0), Shout) as server:
        print("port", server.server_address[1], file=sys.stderr)
        server.serve_forever()
