"""`socketkit serve` and SIGUSR2: one server or several, a new generation has all of their sockets."""

import ast
import contextlib
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest

from helpers.support import ROOT, SERVE
from socketkit.testing.clients import address, ask, talk
from socketkit.testing.programs import GUARD, Program, run, with_path

PIDS = """
import os

main = os.getpid()

def pid(request, client_address, server):
    if isinstance(request, tuple):
        request[1].sendto(b"%d" % main, client_address)
    else:
        request.recv(1)
        request.sendall(b"%d" % main)
"""

SEVERAL = """
[servers.one]
listen = ["tcp://127.0.0.1:0", "unix://one.sock"]
handler = "pids:pid"

[servers.two]
listen = "tcp://127.0.0.1:0"
handler = "pids:pid"
dispatcher = "pool:4"

[servers.three]
listen = "udp://127.0.0.1:0"
handler = "pids:pid"
dispatcher = "thread"
"""


@pytest.fixture
def manager(here, monkeypatch):
    """Return the socket of the service manager that is told of everything."""
    Path("pids.py").write_text(PIDS)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(here / "notify"))
        sock.settimeout(GUARD)
        monkeypatch.setenv("NOTIFY_SOCKET", str(here / "notify"))
        yield sock


def told(manager):
    return manager.recv(4096).decode().splitlines()


def restart(program, manager, pid):
    """Restart; return the pid of the new generation once the old one has ended or only drains."""
    os.kill(pid, signal.SIGUSR2)
    assert told(manager)[0] == "RELOADING=1"
    ready, main = told(manager)
    assert ready == "READY=1", (ready, main, program.output)
    return int(main.removeprefix("MAINPID="))


def ended(pid):
    """Wait for the end of a process that is not our child, if it is not over."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        import select

        assert select.select([descriptor], [], [], GUARD)[0]
    finally:
        os.close(descriptor)


def test_several_servers_are_restarted_together(here, manager):
    Path("several.toml").write_text(SEVERAL)
    with Program(*SERVE, "several.toml") as program:
        urls = sorted(program.serving(4))
        first, second, udp, _unix = map(address, urls)
        assert told(manager) == ["READY=1"]
        pid = program.pid
        for generation in range(2, 5):
            before, pid = pid, restart(program, manager, pid)
            ended(before)
            assert sorted(program.serving(4 * generation)[-4:]) == urls
            for _ in range(5):
                assert [int(talk(first, b"x")), int(talk(second, b"x")), int(ask(udp, b"x")), int(talk("one.sock", b"x"))] == [pid] * 4
        os.kill(pid, signal.SIGTERM)
        ended(pid)
        assert told(manager) == ["STOPPING=1"]
    assert not Path("one.sock").exists()


def test_several_servers_ping_the_watchdog_as_one(here, manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    Path("several.toml").write_text(
        SEVERAL + '[servers.frail]\nlisten = "tcp://127.0.0.1:0"\nhandler = "handlers:never"\ndispatcher = "sync"\n'
    )
    with Program(*SERVE, "several.toml") as program:
        urls = program.serving(5)
        program.line(r"\(sync, graceful\)")
        [frail] = [address(match[1]) for match in program.line(r"^serving (\S+) \(sync")]
        assert len(urls) == 5
        assert told(manager) == ["READY=1"]
        for _ in range(5):
            assert told(manager) == ["WATCHDOG=1"]
        with socket.create_connection(frail, GUARD):
            program.line("begun")  # and its only thread never comes back
            manager.settimeout(1.0)
            with contextlib.suppress(TimeoutError):
                for _ in range(10):  # in 2 s at least, if they went on
                    assert told(manager) == ["WATCHDOG=1"]
                pytest.fail("it is still pinged")
            program.send_signal(signal.SIGKILL)


def test_a_handler_on_the_command_line_is_restarted(here, manager):
    with Program(*SERVE, "pids:pid", "--listen", "tcp://127.0.0.1:0") as program:
        [url] = program.serving()
        assert told(manager) == ["READY=1"]
        pid = restart(program, manager, program.pid)
        assert program.wait() == 0
        assert int(talk(address(url), b"x")) == pid
        assert program.serving(2) == [url, url]


def test_a_file_that_has_become_bad_meanwhile_changes_nothing(here, manager):
    Path("several.toml").write_text(SEVERAL)
    with Program(*SERVE, "several.toml") as program:
        first = next(address(url) for url in program.serving(4) if url.startswith("tcp"))
        assert told(manager) == ["READY=1"]
        Path("several.toml").write_text(SEVERAL.replace("pool:4", "pol:4"))
        program.send_signal(signal.SIGUSR2)
        assert told(manager)[0] == "RELOADING=1"
        assert told(manager) == ["READY=1", "STATUS=restart failed: the new one ended with exit code 2"]
        program.line("Error: servers.two.dispatcher: .*did you mean 'pool'")
        program.line("restart failed, and this process goes on serving: the new one ended with exit code 2")
        assert int(talk(first, b"x")) == program.pid
        assert program.stop() == 0


def test_a_new_generation_starts_where_the_link_in_pwd_leads_now(here, manager, monkeypatch):
    """A deployment points the link ``current`` at a new release."""
    for release in ("old", "new"):
        Path(release).mkdir()
        Path(release, "release.py").write_text(f"def name(request, client_address, server): request.sendall(b'{release}')\n")
    current = here / "current"
    current.symlink_to("old")
    monkeypatch.setenv("PWD", str(current))
    with Program(*SERVE, "release:name", "--listen", "tcp://127.0.0.1:0", cwd=current) as program:
        where = address(program.serving()[0])
        assert told(manager) == ["READY=1"]
        assert talk(where, b"") == b"old"
        current.unlink()
        shutil.rmtree("old")
        program.send_signal(signal.SIGUSR2)
        assert told(manager)[0] == "RELOADING=1"
        assert told(manager) == ["READY=1", "STATUS=restart failed: the working directory does not exist any more"]
        assert talk(where, b"") == b"old"
        current.symlink_to("new")
        pid = program.pid
        for _ in range(2):  # the second generation knows the link, too
            pid = restart(program, manager, pid)
            assert Path(f"/proc/{pid}/cwd").readlink() == here / "new"
        assert program.wait() == 0
        assert talk(where, b"") == b"new"


def test_a_program_that_a_handlers_module_starts_inherits_no_socket(here, manager):
    Path("starts.py").write_text(
        "import os\nos.system('ls -l /proc/self/fd')\ndef pid(request, *_): request.sendall(b'%d' % os.getpid())\n"
    )
    with Program(*SERVE, "starts:pid", "--listen", "tcp://127.0.0.1:0") as program:
        where = address(program.serving()[0])
        assert told(manager) == ["READY=1"]
        pid = restart(program, manager, program.pid)
        assert program.wait() == 0
        assert int(talk(where, b"")) == pid
        program.line("-> ")
        assert "socket:[" not in program.output
        assert len(set(re.findall(r"pipe:\[\d+\]", program.output))) == 1  # its output, and not the pipe on which it reports


def test_a_working_directory_that_has_been_removed_is_told(here):
    gone = here / "gone"
    gone.mkdir()
    script = 'cd gone && rmdir "$PWD" && exec "$@"'
    ended = run("/bin/sh", "-c", script, "sh", *SERVE, "handlers:Upper", "--listen", "tcp://127.0.0.1:0", code=2)
    assert "Error: The working directory does not exist any more" in ended.stderr
    assert "Traceback" not in ended.stderr


CLASSIC = """
import os, socketserver, ssl, sys
main = os.getpid()
class Hold(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d\\n" % main)
        self.rfile.readline()
kind = getattr(socketserver, sys.argv[1])
with kind(("127.0.0.1", 0), Hold) as server:
    print("at", server.server_address, flush=True)
    server.serve_forever()
print("over", main, flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("ThreadingTCPServer", ()),
        ("ForkingTCPServer", ()),
        ("TCPServer", ("--dispatcher", "adaptive")),
        ("TCPServer", ("--dispatcher", "prefork:2")),
    ],
    ids=lambda each: each if isinstance(each, str) else "-".join(each) or "own",
)
def test_an_unmodified_program_is_restarted_again_and_again(here, kind, more):
    Path("classic.py").write_text(CLASSIC)
    with Program.python(
        "-u", "-m", "socketkit", "run", "--lifecycle", "graceful:20s", *more, "classic.py", kind, env=with_path(ROOT)
    ) as program:
        pids = [program.pid]
        for number in (1, 2):
            where = ast.literal_eval(program.line("^at (.*)", number)[-1][1])
            with socket.create_connection(where, GUARD) as held:
                assert held.makefile().readline() == f"{pids[-1]}\n"
                os.kill(pids[-1], signal.SIGUSR2)
                assert program.line("^at (.*)", number + 1)[-1][1] == program.line("^at (.*)")[0][1]
                pids.append(_next_generation(where, pids[-1]))
                held.sendall(b"\n")
            program.line(f"^over {pids[-2]}$")
        os.kill(pids[-1], signal.SIGTERM)
        program.line(f"^over {pids[-1]}$")
        assert "failed" not in program.output


def _next_generation(where, before):
    """Return the pid of the first process that answers besides the one before."""
    while True:
        with socket.create_connection(where, GUARD) as client:
            pid = int(client.makefile().readline())
        if pid != before:
            return pid


UDP = """
import os, socketserver
class Pid(socketserver.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(b"%d" % os.getpid())
with socketserver.UDPServer(("127.0.0.1", 0), Pid) as server:
    print("at", server.server_address, flush=True)
    server.serve_forever()
"""


def test_an_unmodified_program_of_datagrams_is_restarted(here):
    Path("program.py").write_text(UDP)
    with Program.python("-u", "-m", "socketkit", "run", "--lifecycle", "graceful:20s", "program.py", env=with_path(ROOT)) as program:
        where = ast.literal_eval(program.line("^at (.*)")[0][1])
        assert ask(where, b"?") == b"%d" % program.pid
        program.send_signal(signal.SIGUSR2)
        assert ast.literal_eval(program.line("^at (.*)", 2)[1][1]) == where
        assert program.wait() == 0
        assert ask(where, b"?") not in {b"", b"%d" % program.pid}


def test_what_a_service_manager_passes_is_left_to_an_unmodified_program(here):
    Path("program.py").write_text("import os, socketserver\nprint(os.environ.get('LISTEN_FDS'), flush=True)")
    command = 'export LISTEN_PID=$$; exec "$@"', "sh", sys.executable, "-m", "socketkit", "run", "--lifecycle", "graceful", "program.py"
    assert run("/bin/sh", "-c", *command, env={**with_path(ROOT), "LISTEN_FDS": "1"}).stdout == "1\n"
