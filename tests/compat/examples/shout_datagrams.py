"""Answers datagrams in capitals. Says on standard error where it listens."""

import socketserver
import sys


class Shout(socketserver.BaseRequestHandler):
    def handle(self):
        packet, sock = self.request
        message = packet.strip()
        print(f"{self.client_address[0]} wrote:")
        print(message)
        sock.sendto(message.upper(), self.client_address)


if __name__ == "__main__":
    with socketserver.UDPServer(("localhost", 0), Shout) as server:
        print("port", server.server_address[1], file=sys.stderr)
        server.serve_forever()
