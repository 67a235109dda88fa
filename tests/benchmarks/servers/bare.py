"""``bare datagram|handler|oneshot|loop``: the minimum in Python, one thread and only the necessary system calls."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import sys

from .handlers import PONG, handler


def datagram() -> None:
    """Send each datagram back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        print("port", sock.getsockname()[1])
        while True:
            data, address = sock.recvfrom(65535)
            sock.sendto(data, address)


def handled() -> None:
    """Construct the same handler for each datagram as the servers do: an upper limit for every server."""
    kind = handler(socketserver, "datagram")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        print("port", sock.getsockname()[1])
        while True:
            data, address = sock.recvfrom(65535)
            kind((data, sock), address, None)


def oneshot() -> None:
    """Accept a connection, answer the first data, close the connection, and repeat."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print("port", listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.recv(8192)
                connection.sendall(PONG)


def loop() -> None:
    """Answer each line of every readable connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print("port", listener.getsockname()[1])
        poller = select.epoll()
        poller.register(listener, select.EPOLLIN)
        connections = {}
        while True:
            for fileno, _ in poller.poll():
                if fileno == listener.fileno():
                    connection, _ = listener.accept()
                    connections[connection.fileno()] = connection
                    poller.register(connection, select.EPOLLIN)
                    continue
                data = b""
                with contextlib.suppress(ConnectionError):
                    data = connections[fileno].recv(8192)
                    connections[fileno].sendall(PONG * data.count(b"\n"))
                if not data:
                    connections.pop(fileno).close()


{"datagram": datagram, "handler": handled, "oneshot": oneshot, "loop": loop}[sys.argv[1]]()
