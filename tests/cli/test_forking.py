"""Python warns of forks beside threads: dispatchers that fork never have it do so, and say once if the program has such threads."""

import os
import signal
from pathlib import Path

import pytest

from helpers.reloads import GIVEN, Service
from helpers.support import gone, python
from socketkit.testing.clients import address, ask, talk
from socketkit.testing.programs import GUARD

FORKING = ["fork", *(f"prefork:2/{inner}" for inner in ("sync", "thread", "pool:2", "adaptive", "asyncio", "executor")), "prefork:1/fork"]

ONE = """
[servers.one]
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
handler = "given:{}"
dispatcher = "{}"
"""

PAUSE = """
import os

if os.path.exists("pause"):
    os.write(1, b"paused\\n")
    open("pause").close()
"""


@pytest.fixture(params=["always", "error"])
def strict(request, monkeypatch):
    """Have every warning shown, or made an error: Python 3.12 to 3.14 drop that error, and 3.15 raises it in the parent after the fork."""
    monkeypatch.setenv("PYTHONWARNINGS", f"{request.param}::DeprecationWarning")


@pytest.mark.parametrize("dispatcher", FORKING)
@pytest.mark.usefixtures("strict")
def test_no_fork_beside_threads_of_the_library_warns(dispatcher, here):
    Path("given.py").write_text(PAUSE + GIVEN)
    Path("one.toml").write_text(ONE.format("upper", dispatcher))
    with Service("one.toml") as service:
        tcp, udp = map(address, service.serving(2))

        def serves(answer):
            for _ in range(3):
                assert talk(tcp, b"Aa") == answer
                assert ask(udp, b"Aa") == answer

        assert service.told() == ["READY=1"]
        serves(b"AA")
        Path("one.toml").write_text(ONE.format("lower", dispatcher))
        os.mkfifo("pause")
        service.send_signal(signal.SIGHUP)  # with one server, a reload is a restart
        service.line("^paused")
        serves(b"AA")  # by the old generation, in which a thread waits for the new one
        Path("pause").open("w").close()
        assert service.wait() == 0
        serves(b"aa")
        while not (said := service.told())[0].startswith("READY=1"):
            pass
        new = int(said[1].removeprefix("MAINPID="))
        os.kill(new, signal.SIGTERM)
        assert gone(new, within=GUARD)
    assert "Warning" not in service.output
    assert "while other threads run" not in service.output


@pytest.mark.parametrize("dispatcher", ["fork", "prefork:2/sync"])
@pytest.mark.usefixtures("strict")
def test_forks_beside_other_servers_of_a_file_are_logged_once(dispatcher, here):
    Path("given.py").write_text(GIVEN)
    other = '[servers.other]\nlisten = "tcp://127.0.0.1:0?backlog=9"\nhandler = "given:{}"\ndispatcher = "pool:2"\n'
    Path("two.toml").write_text(ONE.format("upper", dispatcher) + other.format("upper"))
    with Service("two.toml") as service:
        urls = service.serving(3)
        assert service.told() == ["READY=1"]
        for url in urls * 2:
            assert (ask if url.startswith("udp") else talk)(address(url), b"Aa") == b"AA"
        Path("two.toml").write_text(ONE.format("lower", dispatcher) + other.format("upper"))
        assert service.reload() == ["READY=1"]
        assert service.stop() == 0
    assert service.output.count("this process forks while other threads run (MainThread") == 1
    assert "DeprecationWarning" not in service.output
    assert "Traceback" not in service.output


BESIDE = """
import sys, threading
from socketkit import BaseRequestHandler, ForkingTCPServer, Server
from socketkit.testing.clients import talk

class Upper(BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.request.recv(100).upper())

def ask(where, stop):
    for _ in range(3):
        print(talk(where, b"aa"))
    stop()

if sys.argv[1] == "classic":
    with ForkingTCPServer(("127.0.0.1", 0), Upper) as server:
        threading.Thread(target=ask, args=(server.server_address, server.shutdown), name="bystander").start()
        server.serve_forever()
else:
    with Server("tcp://127.0.0.1:0", Upper, dispatcher=sys.argv[1]) as server:
        threading.Thread(target=ask, args=(server.addresses[0], server.stop), name="bystander").start()
        server.serve_forever()
"""


@pytest.mark.parametrize("dispatcher", ["classic", "fork", "prefork:2/sync"])
@pytest.mark.usefixtures("strict")
def test_forks_beside_threads_of_the_program_are_logged_once_and_lose_no_child(dispatcher):
    ran = python(BESIDE, dispatcher)
    assert ran.stdout.splitlines() == ["b'AA'"] * 3
    [line] = ran.stderr.splitlines()
    assert line.startswith("this process forks while other threads run (bystander): a lock that one of these holds stays locked")
