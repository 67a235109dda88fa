"""A service in its own process that restarts on SIGUSR2, and its service manager."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from helpers.support import Managed
from socketkit.testing.clients import address

PROGRAM = """
import os, signal, sys, time
from http.server import BaseHTTPRequestHandler
from socketkit import Graceful, Server

trouble = os.path.exists("trouble") and open("trouble").read()
exec(trouble or "")

def count():
    os.write(counter, b".")  # appends atomically, in any generation

class Http(BaseHTTPRequestHandler):
    def do_GET(self):
        count()
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments):
        pass

class KeptAlive(Http):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

def pong(request, client_address, server):
    if request.recv(100).startswith(b"*1"):  # how redis-benchmark sends PING
        count()
        request.sendall(b"+PONG\\r\\n")
    else:
        request.sendall(b"-ERR there is none\\r\\n")

def pid(request, client_address, server):
    if isinstance(request, tuple):
        request[1].sendto(b"%d" % os.getppid() if os.getpid() != main else b"%d" % main, client_address)
    else:
        request.recv(1)
        request.sendall(b"%d" % os.getppid() if os.getpid() != main else b"%d" % main)

def wait(request, client_address, server):
    request.sendall(b"%d" % main)
    request.sendall(request.recv(10).upper())

main = os.getpid()
counter = os.open("count", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
handler, dispatcher, options, *urls = sys.argv[1:]
server = Server(urls, globals()[handler], dispatcher=dispatcher, lifecycle=eval(f"Graceful({options})"))
print("begins", os.getpid(), flush=True)
with server:
    print("listens", *server.urls, flush=True)
    server.serve_forever()
print("ends", os.getpid(), server.stop(), flush=True)
"""


class Service(Managed):
    """The program above, and its service manager."""

    def __init__(self, folder, handler, *urls, dispatcher="adaptive", options="", watchdog=None):
        (folder / "program.py").write_text(PROGRAM)
        self.folder = folder
        command = (sys.executable, "-u", "-X", "faulthandler", "program.py", handler, dispatcher, options, *urls)
        super().__init__(folder, *command, cwd=folder, env={"WATCHDOG_USEC": watchdog} if watchdog else {})

    def __enter__(self):
        super().__enter__()
        try:
            assert self.told() == ["READY=1"]
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def place(self):
        return self.places[0]

    @property
    def places(self):
        return [address(url) for url in self.line(r"^listens (.*)")[0][1].split()]

    def signal(self, number=signal.SIGUSR2):
        os.kill(self.pid, number)

    def restart(self):
        """Restart the service, and return when only the new generation listens."""
        listeners = {f"socket:[{row[9]}]" for row in connections() if row[3] == "0A"}.intersection(descriptors(self.pid))
        self.signal()
        assert self.told()[0] == "RELOADING=1"
        ready, main = self.told()
        assert ready == "READY=1"
        before, self.pid = self.pid, int(main.removeprefix("MAINPID="))
        assert self.pid != before
        while not listeners.isdisjoint(descriptors(before)):  # to read /proc/net/tcp each time would take a processor
            time.sleep(0.001)

    def fail(self):
        """Request a restart that has to fail; return the reason, which the log and the manager both get."""
        self.signal()
        assert self.told()[0] == "RELOADING=1"
        ready, status = self.told()
        assert ready == "READY=1"
        [logged] = self.line(r"restart failed, and this process goes on serving: (.*)")
        assert status == f"STATUS=restart failed: {logged[1]}"
        return logged[1]

    def counted(self):
        return (self.folder / "count").stat().st_size


def holds(pid, wanted):
    """Return whether the process has a TCP socket whose row in /proc/net/tcp satisfies `wanted`."""
    held = set(descriptors(pid))
    return any(f"socket:[{row[9]}]" in held for row in connections() if wanted(row))


def connections():
    """Return the rows of /proc/net/tcp, each as its fields: the fourth is 0A if the socket listens, the tenth its inode. Source: proc(5)."""
    return [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]


def descriptors(pid):
    """Return the targets of the process's descriptors; an empty list if it has ended."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed just now
                found.append(os.readlink(link))
    return found
