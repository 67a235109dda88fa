"""What the tests of the command line share."""

import os
import textwrap

import pytest

HANDLERS = """
import os, socketserver, threading

class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())

class UpperDatagram(socketserver.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())

class Told(socketserver.StreamRequestHandler):
    def handle(self):
        os.write(1, b"begun\\n")  # in one piece, whatever other threads write
        self.wfile.write(self.rfile.readline().upper())

def never(request, client_address, server):
    os.write(1, b"begun\\n")
    threading.Event().wait()

number = 42

def both(request, client_address, server):
    if isinstance(request, tuple):
        request[1].sendto(request[0].upper(), client_address)
    else:
        request.sendall(request.recv(1000).upper())
"""


@pytest.fixture(scope="session")
def usual():
    """Return the name of the dispatcher that a server has when none is given."""
    from socketkit import TCP, Server
    from socketkit.composition.catalog import Catalog

    return Catalog.load().offer_of(Server(TCP("127.0.0.1", 0), print).dispatcher).name


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Go to a folder with the module `handlers`."""
    (tmp_path / "handlers.py").write_text(HANDLERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOCKETKIT_DISABLED_PLUGINS", raising=False)
    return tmp_path


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a distribution with one plugin for the programs that are started."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH")))))

    def install(distribution, plugin, source):
        module = f"{distribution.replace('-', '_')}_plugin"
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        info = site / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[socketkit]\n{plugin} = {module}\n")

    return install
