"""A handler that tests hold and release, and its clients."""

import socket
import threading


class Rooms:
    """A handler that answers at once, or waits until the test releases it if the client sends "hold"."""

    def __init__(self):
        self.inside, self.leave = threading.Semaphore(0), threading.Event()
        self.held = False
        self.most, self._now, self._lock = 0, 0, threading.Lock()
        self.threads = set()

    def __call__(self, request, client_address, server):
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.threads.add(threading.get_ident())
        try:
            if request.recv(4) == b"hold":
                self.held = True
                self.inside.release()
                assert self.leave.wait(20)
            request.sendall(b"done")
        finally:
            with self._lock:
                self._now -= 1


def held(server, rooms):
    """Return a client whose handler is waiting."""
    client = socket.create_connection(server.addresses[0], timeout=10)
    client.sendall(b"hold")
    assert rooms.inside.acquire(timeout=10)
    return client


def answers(client):
    with client:
        return client.recv(4) == b"done"
