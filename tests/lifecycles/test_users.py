"""`Graceful(user=...)`: a server that is started as root becomes another user for good, before it takes a request."""

import contextlib
import functools
import os
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.dispatchers import EVERY_IN_PLACE
from helpers.support import ROOT, TESTS
from socketkit import TCP, Graceful, Server
from socketkit.composition import capabilities, config
from socketkit.errors import ConfigError, IncompatibleError
from socketkit.lifecycles import graceful
from socketkit.seams import DrainReport
from socketkit.testing.certificates import authority, certificate
from socketkit.testing.clients import address, talk
from socketkit.testing.programs import GUARD, Program, run, with_path

NOBODY, NOGROUP = pwd.getpwnam("nobody")[2:4]
IDS = f"([{NOBODY}, {NOBODY}, {NOBODY}], [{NOGROUP}, {NOGROUP}, {NOGROUP}], [])"


ENV = with_path(ROOT, TESTS, sysconfig.get_path("purelib"))


@functools.cache
def interpreter():
    """Return a Python that the user nobody may run with this checkout; None without one. root's own is often in a folder of root."""
    nobody = {"user": NOBODY, "group": NOGROUP, "extra_groups": [], "cwd": "/", "env": ENV}
    for candidate in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            if subprocess.run([candidate, "-c", "import socketkit.cli"], check=False, capture_output=True, **nobody).returncode == 0:
                return candidate
    return None


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or interpreter() is None, reason="this is not root, or the user nobody may not run Python with this checkout"
)


def python(source, *arguments):
    run(interpreter(), "-c", source, *arguments, env=ENV)


def command(*arguments, **options):
    return Program(interpreter(), "-X", "faulthandler", "-m", "socketkit", "serve", *arguments, env=ENV, **options)


PRELUDE = """
import os, signal, socket, sys, threading
from socketkit import *
from socketkit.errors import PrivilegeError
from socketkit.testing.clients import talk

def ids():
    return repr((list(os.getresuid()), list(os.getresgid()), os.getgroups())).encode()

def who(request, client_address, server):
    request.sendall(ids())

def serve(server, use):
    '''Serve in the main thread while `use` runs in another.'''
    def run():
        while not server.ready: pass
        try:
            use()
        finally:
            server.stop(wait=False)
    thread = threading.Thread(target=run)
    with server:
        thread.start()
        server.serve_forever()
    thread.join()
"""


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("graceful:user=nobody", Graceful(user="nobody")),
        (f"graceful:user={NOBODY},group={NOGROUP}", Graceful(user=NOBODY, group=NOGROUP)),
        ("graceful:user=nobody,group=daemon", Graceful(user="nobody", group="daemon")),
    ],
)
def test_users_and_groups_are_names_or_numbers(text, recipe):
    assert config.lifecycle(text) == recipe


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"user": "nowhere"}, "there is no user named 'nowhere'"),
        ({"user": -1}, "-1 is not a user ID"),
        ({"user": "root"}, "user must be a user without root's privileges, not 'root'"),
        ({"user": 0, "group": 1}, "user must be a user without root's privileges, not 0"),
        ({"user": 54321}, "user 54321 is not in the user database; name its group"),
        ({"user": "nobody", "group": "nowhere"}, "there is no group named 'nowhere'"),
        ({"user": "nobody", "group": True}, "True is not a group ID"),
        ({"group": "daemon"}, "group needs user; give both, or neither"),
    ],
)
def test_a_user_that_makes_no_sense_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Graceful(**options)


def test_a_platform_without_it_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(capabilities.FEATURES, "setresuid", False)
    Server(TCP("127.0.0.1", 0), print, lifecycle=Graceful())
    with pytest.raises(IncompatibleError, match="Graceful needs setresuid"):
        Server(TCP("127.0.0.1", 0), print, lifecycle=Graceful(user="nobody"))


def test_the_servers_of_a_file_must_have_the_same_user(tmp_path):
    table = '[servers.{}]\nlisten = "tcp://127.0.0.1:0"\nhandler = "builtins:print"\n{}\n'
    path = tmp_path / "all.toml"
    path.write_text(table.format("a", "") + table.format("b", 'lifecycle = "graceful:user=nobody"'))
    with pytest.raises(
        ConfigError, match=r"servers\.b\.lifecycle: user and group differ from those of server 'a'.*give all servers the same"
    ):
        config.read(path)
    assert set(config.read(path, "b")) == {"b"}


# --- dropping ---------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("dispatcher", EVERY_IN_PLACE)
def test_every_request_is_served_as_that_user_under_every_dispatcher(dispatcher):
    python(
        PRELUDE
        + f"""
os.setgroups([1, 2, 3])
server = Server("tcp://127.0.0.1:0", who, dispatcher=sys.argv[1], lifecycle=Graceful(10, user="nobody"))
found = []
serve(server, lambda: found.extend(talk(server.addresses[0], b"") for _ in range(5)))
assert found == [b"{IDS}"] * 5, found
for become in os.setuid, os.setgid, os.seteuid, lambda _number: os.setgroups([]):
    try:
        become(0)
    except PermissionError:
        continue
    raise AssertionError(become)
""",
        dispatcher,
    )


@needs_root
def test_a_group_of_its_own_may_be_given():
    python(
        PRELUDE
        + """
server = Server("memory://", who, lifecycle=Graceful(10, user=1, group=2))
found = []
def use():
    with server.connect() as client:
        found.append(client.recv(100))
serve(server, use)
assert found == [b"([1, 1, 1], [2, 2, 2], [])"], found
"""
    )


@needs_root
def test_it_takes_effect_in_the_background_and_for_all_threads():
    python(
        PRELUDE
        + """
seen, go = [], threading.Event()
def look():
    assert go.wait(20)
    seen.append(open("/proc/thread-self/status").read())
thread = threading.Thread(target=look)
thread.start()
with Server("tcp://127.0.0.1:0", who, lifecycle=Graceful(10, user=1)).start() as server:
    go.set()
    thread.join()
    assert os.getresuid() == (1, 1, 1)
assert "Uid:\\t1\\t1\\t1\\t1" in seen[0], seen
"""
    )


@needs_root
def test_all_listeners_are_bound_as_root(tmp_path):
    python(
        PRELUDE
        + """
ports = iter(range(1, 1024))
def privileged():
    for port in ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
first, second = privileged(), privileged()
server = Server([f"tcp://127.0.0.1:{first}", f"tcp://127.0.0.1:{second}"], who, lifecycle=Graceful(10, user=1))
found = []
serve(server, lambda: found.extend(talk(where, b"") for where in server.addresses))
assert found == [b"([1, 1, 1], [1, 1, 1], [])"] * 2, found
try:
    socket.create_server(("127.0.0.1", first))
except PermissionError:
    pass
else:
    print("every user may use every port here")
"""
    )


# --- failing ----------------------------------------------------------------------------------------------------------

FAILS = """
served = []
server = Server("tcp://127.0.0.1:0", lambda *request: served.append(1), lifecycle=Graceful(10, user="daemon"))
server.__enter__()
where = server.addresses[0]
client = socket.create_connection(where, timeout=10)
client.sendall(b"hello")
try:
    {start}
except PrivilegeError as error:
    assert "\\n" not in str(error) and {sentence!r} in str(error), error
else:
    raise AssertionError
try:
    assert client.recv(1) == b""
except ConnectionResetError:
    pass
assert server.state.value == "failed" and not server.addresses and not served, server
try:
    socket.create_connection(where)
except ConnectionRefusedError:
    pass
else:
    raise AssertionError("something is still bound")
"""
UNPRIVILEGED = """
os.setgroups([]); os.setresgid(2, 2, 2); os.setresuid(2, 2, 2)
"""
REGAINABLE = """
import ctypes
PR_SET_SECUREBITS, NO_SETUID_FIXUP = 28, 1 << 2
assert ctypes.CDLL(None).prctl(PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0, 0, 0) == 0
"""


@needs_root
@pytest.mark.parametrize("start", ["server.serve_forever()", "server.start()"])
@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        (UNPRIVILEGED, "cannot run as user 'daemon': this process runs as user 2 and may not change that (Operation not permitted); start it as root"),
        (REGAINABLE, "the process could become root again"),
    ],
    ids=["not root", "root can be regained"],
)  # fmt: skip
def test_a_failure_stops_the_start_and_leaves_nothing_bound(before, sentence, start):
    python(PRELUDE + before + FAILS.format(start=start, sentence=sentence))


@needs_root
def test_the_command_says_so_in_one_sentence():
    drop = {"user": NOBODY, "group": NOGROUP, "extra_groups": [], "env": ENV, "cwd": "/"}
    serve = (interpreter(), "-m", "socketkit", "serve", "builtins:print", "--listen", "tcp://127.0.0.1:0")
    found = run(*serve, "--lifecycle", "graceful:user=daemon", code=1, **drop).stderr
    assert found == (
        f"Error: cannot run as user 'daemon': this process runs as user {NOBODY} and may not change that (Operation not permitted); "
        "start it as root, or leave user and group out\n"
    )


@needs_root
def test_a_process_that_is_that_user_already_needs_no_privileges():
    python(
        PRELUDE
        + UNPRIVILEGED
        + """
with Server("memory://", who, lifecycle=Graceful(10, user=2, group=2)).start() as server, server.connect() as client:
    assert client.recv(100) == b"([2, 2, 2], [2, 2, 2], [])"
"""
    )


# --- the command ------------------------------------------------------------------------------------------------------

HANDLERS = """
import os

def who(request, client_address, server):
    request.sendall(b"%d %d" % (os.getpid(), os.geteuid()))
"""


@pytest.fixture
def folder(monkeypatch):
    """Go to a folder that every user can read and only root can write."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        Path(name, "told.py").write_text(HANDLERS)
        monkeypatch.chdir(name)
        yield name


@needs_root
def test_a_restart_goes_on_as_that_user_with_the_sockets_passed_on(folder):
    port = next(port for port in range(600, 1024) if is_free(port))
    listen = ("--listen", f"tcp://127.0.0.1:{port}", "--listen", f"unix://{folder}/s?mode=0o666")
    with command("told:who", *listen, "--lifecycle", "graceful:drain=10,user=nobody") as program:
        program.serving(2)
        first = talk(("127.0.0.1", port), b"", GUARD).split()
        program.send_signal(signal.SIGUSR2)
        program.serving(4)
        program.wait()
        second = talk(("127.0.0.1", port), b"", GUARD).split()
        assert second == talk("s", b"", GUARD).split()
        os.kill(int(second[0]), signal.SIGTERM)
        program.line("s stays, because it cannot be removed")
    assert first[0] != second[0]
    assert first[1] == second[1] == b"%d" % NOBODY
    assert os.path.exists("s")


def is_free(port):
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


@needs_root
def test_several_servers_of_a_file_share_the_user(folder):
    table = '[servers.{}]\nlisten = "tcp://127.0.0.1:0"\nhandler = "told:who"\nlifecycle = "graceful:drain=10,user=nobody"\n'
    Path("all.toml").write_text(table.format("a") + table.format("b"))
    with command("all.toml") as program:
        for url in program.serving(2):
            assert talk(("127.0.0.1", int(url.rpartition(":")[2])), b"", GUARD).split()[1] == b"%d" % NOBODY
        assert program.stop() == 0


@needs_root
def test_a_path_that_the_user_cannot_remove_stays_and_is_replaced_by_the_next_start(folder):
    for _ in range(2):
        with command("told:who", "--listen", f"unix://{folder}/s?mode=0o666", "--lifecycle", "graceful:user=nobody") as program:
            program.serving()
            assert talk("s", b"", GUARD).split()[1] == b"%d" % NOBODY
            assert program.stop() == 0
            [said] = program.line("s stays, because")
            assert "(Permission denied); the next server of the user that made it replaces it" in said.string
        assert os.path.exists("s")


@needs_root
@pytest.mark.parametrize("dispatcher", ["adaptive", "fork", "prefork:2"])
def test_a_renewed_key_that_only_root_may_read_leaves_the_old_one_in_use(dispatcher, folder):
    def put(issue):
        for file, name in zip(certificate(issue=issue), ("cert.pem", "cert.key"), strict=True):
            shutil.copy(file, name)
            os.chmod(name, 0o600)

    def presented():
        with (
            socket.create_connection(where, GUARD) as raw,
            ssl.create_default_context(cafile=authority("Authority")).wrap_socket(raw, server_hostname="localhost") as client,
        ):
            client.sendall(b"\n")
            return client.getpeercert(), client.recv(100).split()[1]

    put(0)
    listen = f"tls://127.0.0.1:0?tls.cert={folder}/cert.pem&tls.key={folder}/cert.key&tls.reload=0.05"
    with command("told:who", "--listen", listen, "--dispatcher", dispatcher, "--lifecycle", "graceful:user=nobody") as program:
        where = address(program.serving()[0])
        before = presented()
        assert before[1] == b"%d" % NOBODY
        put(1)
        program.line(
            f"the old certificates stay in use: cannot read {folder}/cert.pem: Permission denied", count=3 if "pre" in dispatcher else 1
        )
        assert presented() == before
        os.chmod("cert.pem", 0o644)
        os.chown("cert.key", NOBODY, NOGROUP)
        while presented() == before:
            assert program.code is None
        assert program.stop() == 0


class FakeServing:
    """A run of a server that records how it is drained."""

    ran = False
    queue = None

    def run(self):
        self.ran = True

    def drain(self, seconds, *, queue=True):
        self.queue = queue
        return DrainReport()


@pytest.mark.parametrize("error", [None, OSError("no")])
def test_what_is_in_the_queue_is_served_only_by_a_process_that_has_become_the_user(error, monkeypatch):
    def fake_give_up(*_who):
        if error is not None:
            raise error

    monkeypatch.setattr(graceful, "give_up", fake_give_up)
    serving = FakeServing()
    with ThreadPoolExecutor(1) as elsewhere:  # in the main thread it would handle signals
        served = elsewhere.submit(Graceful(user="nobody").serve, serving)
    assert served.exception() is error
    assert serving.ran is serving.queue is (error is None)
