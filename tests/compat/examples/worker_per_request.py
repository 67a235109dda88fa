"""Serves in a thread, each request in a thread (or, with the word `fork`, a process) of its own, and asks three times.

Each answer says who gave it.
"""

import os
import socket
import socketserver
import sys
import threading

FORK = "fork" in sys.argv


class Report(socketserver.BaseRequestHandler):
    def handle(self):
        message = self.request.recv(1024).decode("ascii")
        worker = f"Process-{os.getpid()}" if FORK else threading.current_thread().name
        self.request.sendall(f"{worker}: {message}".encode("ascii"))


class Server(socketserver.ForkingMixIn if FORK else socketserver.ThreadingMixIn, socketserver.TCPServer):
    pass


def client(ip, port, message):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect((ip, port))
        sock.sendall(message.encode("ascii"))
        print("Received:", sock.recv(1024).decode("ascii"))


if __name__ == "__main__":
    with Server(("localhost", 0), Report) as server:
        ip, port = server.server_address
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        print("Server loop running in thread:", thread.name)
        for number in (1, 2, 3):
            client(ip, port, f"Hello World {number}")
        server.shutdown()
