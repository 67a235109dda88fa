"""`socketkit run`: the program is as under plain python, but for where its `socketserver` comes from."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from socketkit.testing.clients import talk
from socketkit.testing.programs import GUARD, Program, run, with_path

SOCKETKIT = (sys.executable, "-m", "socketkit")

WHERE = "import socketserver, sys; print(socketserver.__file__, file=sys.stderr)"

FILES = {
    "plain.py": "import sys; print(sys.argv, sys.path[0], __name__, __file__, __spec__ and __spec__.name, __package__, sorted(vars()))",
    "left.py": "import sys; sys.exit(int(sys.argv[1]))",
    "left_with_text.py": "raise SystemExit('because')",
    "left_with_nothing.py": "raise SystemExit(None)",
    "raises.py": "def f():\n    1 / 0\n\nf()\n",
    "interrupted.py": "raise KeyboardInterrupt\n",
    "cleans_up.py": "import atexit, threading\natexit.register(print, 'bye')\nthreading.Thread(target=print, args=('thread',)).start()",
    "wrong.py": "def\n",
    "warns.py": "import warnings\nwarnings.warn('mind', stacklevel=1)\nwarnings.warn('the gap', stacklevel=2)\n",
    "stack.py": "import inspect; print(len(inspect.stack()))",
    "pickles.py": "import pickle\nclass C: pass\nprint(pickle.dumps(C), C.__module__)",
    "flags.py": "import sys; print(sys.flags, sys.warnoptions, sys._xoptions)",
    "input.py": "print(input())",
    "spawns.py": """
import multiprocessing
def work(number):
    return number * 2, __name__
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(work, [21]))
""",
    "pack/__init__.py": "print('pack', __name__)",
    "pack/__main__.py": "import sys; print(sys.argv, sys.path[0], __name__, __file__, __spec__.name, __package__)",
    "pack/part.py": "from . import __name__ as n; import sys; print(n, sys.argv, __spec__.name, __package__); 1 / 0",
    "pack/empty/__init__.py": "",
    "folder/__main__.py": "import sys, near; print(sys.argv, sys.path[0], __name__, __file__, __package__)",
    "folder/near.py": "",
}

COMMANDS = {
    "script": ["plain.py", "a", "--dispatcher", "b", "-m", "--help", "--"],
    "script-by-path": ["./plain.py"],
    "module": ["-m", "plain", "--dispatcher", "b", "-h"],
    "module-in-one-word": ["-mplain", "x"],
    "package": ["-m", "pack", "x"],
    "submodule": ["-m", "pack.part", "x"],
    "package-that-cannot-run": ["-m", "pack.empty"],
    "missing-module": ["-m", "nowhere.to.be.found"],
    "missing-script": ["nowhere.py"],
    "folder": ["folder", "x"],
    "folder-without-main": ["pack/empty"],
    "zip": ["packed.zip", "x"],
    "exit-code": ["left.py", "7"],
    "exit-code-beyond-a-byte": ["left.py", "257"],
    "exit-with-text": ["left_with_text.py"],
    "exit-with-nothing": ["left_with_nothing.py"],
    "traceback": ["raises.py"],
    "traceback-of-module": ["-m", "raises"],
    "interrupt": ["interrupted.py"],
    "interrupt-of-module": ["-m", "interrupted"],
    "syntax-error": ["wrong.py"],
    "clean-up": ["cleans_up.py"],
    "warnings": ["warns.py"],
    "stack": ["stack.py"],
    "stack-of-module": ["-m", "stack"],
    "pickle": ["pickles.py"],
    "standard-input": ["input.py"],
    "script-on-standard-input": ["-", "x"],
    "spawn": ["spawns.py"],
    "spawn-of-module": ["-m", "spawns"],
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Go to a folder with all the programs."""
    for name, source in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        packed.writestr("__main__.py", FILES["folder/__main__.py"])
        packed.writestr("near.py", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # it would show in the flags
    return tmp_path


def outcome(*command, text="print('from the pipe', __name__)\n", **options):
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=GUARD, check=False, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("case", COMMANDS)
def test_a_program_says_prints_and_returns_what_it_does_under_python(files, case):
    plain = outcome(sys.executable, *COMMANDS[case])
    assert outcome(*SOCKETKIT, "run", *COMMANDS[case]) == plain


@pytest.mark.parametrize("options", [["-O"], ["-u"], ["-W", "error"], ["-X", "dev"], ["-bb"], ["-X", "utf8=1"]])
def test_the_interpreter_s_options_are_passed_on(files, options):
    plain = outcome(sys.executable, *options, "flags.py", env=with_path())
    assert outcome(sys.executable, *options, "-m", "socketkit", "run", "flags.py", env=with_path()) == plain


@pytest.mark.parametrize("stream", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_program_with_a_closed_stream_ends_as_under_python(files, stream):
    Path("streams.py").write_text("import sys; open('seen', 'w').write(str([sys.stdin is None, sys.stdout is None, sys.stderr is None]))")
    seen = []
    for start in ([sys.executable], [*SOCKETKIT, "run"]):
        run("/bin/sh", "-c", f'exec "$@" {stream}', "sh", *start, "streams.py")
        seen.append(Path("seen").read_text())
    assert seen[0] == seen[1]


@pytest.mark.parametrize("path", ["", ":", ":lib", "lib:", "lib::lib"])
def test_an_empty_entry_of_pythonpath_is_the_current_folder(files, path):
    Path("folder/prints.py").write_text("import sys; print(sys.path)")
    variables = {**os.environ, "PYTHONPATH": path}
    plain = outcome(sys.executable, "folder/prints.py", env=variables)
    assert outcome(*SOCKETKIT, "run", "folder/prints.py", env=variables) == plain
    assert outcome(*SOCKETKIT, "run", "-m", "socketkit", "run", "folder/prints.py", env=variables) == plain


def test_an_isolated_interpreter_is_one_for_the_program_too_but_for_what_reaches_it(files):
    printed = outcome(sys.executable, "-s", "-P", "-m", "socketkit", "run", "flags.py")[1]
    assert "no_user_site=1" in printed
    assert "safe_path=True" in printed


def test_an_interrupt_from_the_terminal_ends_the_program_as_python_ends(files):
    Path("waits.py").write_text("import signal\nprint('waiting', flush=True)\nsignal.pause()\n")
    with Program(*SOCKETKIT, "run", "waits.py") as program:
        program.line("waiting")
        assert program.stop(signal.SIGINT) == -signal.SIGINT
        assert "click" not in program.output
        assert "socketkit" not in program.output


def test_the_program_has_the_process_that_was_started(files):
    Path("pid.py").write_text("import os; print('pid', os.getpid(), flush=True); os.read(0, 1)")
    with Program(*SOCKETKIT, "run", "pid.py") as program:
        assert int(program.line(r"pid (\d+)")[0][1]) == program.pid


# --- the drop-in ------------------------------------------------------------------------------------------------------


def told(source, *options, env=None):
    """Return what a program prints under `socketkit run`."""
    Path("told.py").write_text(source)
    return run(*SOCKETKIT, "run", *options, "told.py", **({"env": env} if env else {})).stdout


def test_the_drop_in_is_the_one_socketserver(files):
    told("""
import importlib, pickle, sys
import socketserver, http.server, xmlrpc.server, wsgiref.simple_server, logging.config
from socketkit import socketserver as ours
from socketkit.handlers import base as handlers
assert ours is socketserver is sys.modules["socketserver"] is sys.modules["socketkit.socketserver"]
assert socketserver.__name__ == socketserver.__spec__.name == "socketserver" and socketserver.__package__ == ""
assert socketserver.__file__ == socketserver.__spec__.origin
for name in socketserver.__all__:
    thing = getattr(socketserver, name)
    assert thing.__module__ == "socketserver", name
    assert pickle.loads(pickle.dumps(thing)) is thing
assert socketserver.StreamRequestHandler is handlers.StreamRequestHandler
for server in (http.server.HTTPServer, xmlrpc.server.SimpleXMLRPCServer, wsgiref.simple_server.WSGIServer):
    assert issubclass(server, ours.BaseServer), server
assert issubclass(logging.config.ThreadingTCPServer, ours.BaseServer)
assert importlib.util.find_spec("socketserver").origin == ours.__file__
assert "class TCPServer" in socketserver.__loader__.get_source("socketserver")
""")


def test_an_import_afresh_and_a_reload_give_the_same_drop_in(files):
    told("""
import importlib, sys
import socketserver as first
base = first.BaseServer
del sys.modules["socketserver"]
import socketserver as second
assert second is first and second.BaseServer is base
assert importlib.reload(second) is first and first.BaseServer is base
assert first.__spec__.name == "socketserver"
""")


def test_small_writes_go_out_at_once(files):
    told("""
import socket, socketserver
with socketserver.TCPServer(("127.0.0.1", 0), None) as server:
    assert server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
""")


def test_nothing_of_socketkit_is_imported_before_socketserver_is(files):
    printed = told("""
import sys
print(sorted({name.partition(".")[0] for name in sys.modules} & {"socketkit", "attr", "attrs", "click", "pluggy", "cattrs", "typing"}))
import socketserver
print(sorted({name.partition(".")[0] for name in sys.modules} & {"socketkit", "click", "pluggy", "cattrs"}))
""")
    assert printed == "[]\n['socketkit']\n"


def test_libraries_of_ours_are_not_taken_from_namesakes_beside_the_program(files):
    for name in ("attr.py", "attrs.py", "difflib.py", "socketkit.py"):
        (files / "folder" / name).write_text("print('a namesake')")
    Path("folder/told.py").write_text("import socketserver; print(socketserver.TCPServer.__module__, 'socketkit' in socketserver.__file__)")
    assert run(*SOCKETKIT, "run", "folder/told.py").stdout == "socketserver True\n"


def test_what_serving_needs_is_not_taken_from_namesakes_beside_the_program(files):
    for name in ("queue", "heapq", "signal", "weakref", "warnings", "contextvars"):
        (files / "folder" / f"{name}.py").write_text("print('a namesake')")
    Path("folder/served.py").write_text("""
import socketserver
with socketserver.TCPServer(("127.0.0.1", 0), None) as server:
    server.shutdown()
    server.timeout = 0
    server.handle_request()
import difflib, queue
print(hasattr(queue, "SimpleQueue"))
""")
    assert run(*SOCKETKIT, "run", "folder/served.py").stdout == "True\n"


def test_the_program_does_not_see_how_it_is_reached(files):
    printed = told("""
import sys
print([entry for entry in sys.path if "_dropin" in entry], [entry for entry in sys.path_importer_cache if "_dropin" in entry])
print("sitecustomize" in sys.modules)
""")
    assert printed == f"[] []\n{has_sitecustomize()}\n"


def has_sitecustomize():
    return outcome(sys.executable, "-c", "import sys; print('sitecustomize' in sys.modules)")[1].strip()


def test_a_sitecustomize_that_is_there_runs_as_ever(files):
    Path("site-own").mkdir()
    Path("site-own/sitecustomize.py").write_text("import sys; sys.mark = __file__, __name__, __spec__.name")
    printed = told("import sys, sitecustomize; print(sys.mark, sitecustomize.__file__)", env=with_path(files / "site-own"))
    own = str(files / "site-own" / "sitecustomize.py")
    assert printed == f"{(own, 'sitecustomize', 'sitecustomize')} {own}\n"


def test_an_error_in_a_sitecustomize_is_told_as_ever(files):
    Path("site-own").mkdir()
    Path("site-own/sitecustomize.py").write_text("1 / 0")
    env = with_path(files / "site-own")
    _, _, plain = outcome(sys.executable, "stack.py", env=env)
    code, _, told_so = outcome(*SOCKETKIT, "run", "stack.py", env=env)
    assert (code, told_so) == (0, plain * 2)  # our own process, and the program's
    assert "ZeroDivisionError" in plain


def test_the_door_is_written_for_every_python_there_is():
    import ast
    import importlib.util

    package = Path(importlib.util.find_spec("socketkit").origin).parent
    ast.parse((package / "_dropin" / "child" / "sitecustomize.py").read_text(), feature_version=(3, 4))


def test_without_site_the_program_is_not_started(files):
    site = subprocess.run(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    )
    code, output, errors = outcome(sys.executable, "-S", "-m", "socketkit", "run", "stack.py", env=with_path(site.stdout.strip()))
    assert (code, output) == (2, "")
    assert "without -S" in errors


# --- strategies -------------------------------------------------------------------------------------------------------

ASKS_ITSELF = """
import os, socket, socketserver, threading

class Tell(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(f"{os.getpid()} {threading.get_ident()}".encode())

def ask(address):
    with socket.create_connection(address, 10) as client:
        pid, thread = map(int, client.makefile().read().split())
    return "fork" if pid != os.getpid() else "sync" if thread == serving.ident else "thread"

for kind in (socketserver.TCPServer, socketserver.ThreadingTCPServer, socketserver.ForkingTCPServer):
    with kind(("127.0.0.1", 0), Tell) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        print(ask(server.server_address))
        server.shutdown()
        serving.join()
"""


def test_each_server_keeps_the_strategy_its_class_names(files):
    assert told(ASKS_ITSELF).split() == ["sync", "thread", "fork"]


@pytest.mark.parametrize("dispatcher", ["sync", "thread", "fork", "fork:3"])
def test_every_server_runs_under_the_dispatcher_that_was_asked_for(files, dispatcher):
    assert told(ASKS_ITSELF, "--dispatcher", dispatcher).split() == [dispatcher.partition(":")[0]] * 3


@pytest.mark.skipif(sys.version_info < (3, 14), reason="interpreters need Python 3.14")
def test_interpreters_are_refused_before_the_program_starts():
    refused = run(*SOCKETKIT, "run", "--dispatcher", "interpreters:2", "-m", "this", code=2)
    assert "interpreters:2 cannot run the classes of socketserver" in refused.stderr
    assert refused.stdout == ""


def test_every_server_is_stopped_by_the_lifecycle_that_was_asked_for(files):
    source = """
import socketserver
class Server(socketserver.TCPServer):
    def server_activate(self):
        super().server_activate()
        print("listening", flush=True)
    def service_actions(self):
        print("turning", flush=True)
with Server(("127.0.0.1", 0), None) as server:
    server.serve_forever(0.01)
print("stopped", flush=True)
"""
    Path("told.py").write_text(source)
    with Program(*SOCKETKIT, "run", "--lifecycle", "graceful:drain=2", "told.py") as program:
        program.line("turning")
        assert program.stop(signal.SIGTERM) == 0
        assert program.output.endswith("stopped\n")


@pytest.mark.clients
@pytest.mark.parametrize("dispatcher", [None, "sync", "thread", "fork"])
def test_http_server_answers_curl(files, dispatcher):
    options = ["--dispatcher", dispatcher] if dispatcher else []
    with Program(sys.executable, "-u", *SOCKETKIT[1:], "run", *options, "-m", "http.server", "--bind", "127.0.0.1", "0") as program:
        port = program.line(r"port (\d+)")[0][1]
        fetched = run("curl", "-sS", "--max-time", "10", f"http://127.0.0.1:{port}/raises.py", f"http://127.0.0.1:{port}/left.py")
        assert fetched.stdout == FILES["raises.py"] + FILES["left.py"]
        program.line(r'"GET /left.py HTTP/1.1" 200')
        if dispatcher == "sync":  # elsewhere the main thread may be starting a thread still, where python itself can lose a Ctrl-C
            assert program.stop(signal.SIGINT) == 0
            assert "Keyboard interrupt received" in program.output
        else:
            assert program.stop(signal.SIGTERM) == -signal.SIGTERM


# --- processes that the program starts --------------------------------------------------------------------------------


def test_a_python_started_by_the_program_has_the_drop_in_too(files):
    printed = told(f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {WHERE!r} + "; import os; os.chdir('/'); print(socketserver.TCPServer.__module__, 'socketkit' in socketserver.__file__)"], check=True)
""")
    assert printed == "socketserver True\n"


def test_a_python_that_never_imports_socketserver_pays_nothing(files):
    printed = told("""
import subprocess, sys
count = "import sys; print(*sys.modules)"
subprocess.run([sys.executable, "-c", count], check=True)
subprocess.run([sys.executable, "-E", "-c", count], check=True)
""")
    ours, plain = printed.splitlines()
    assert set(ours.split()) - set(plain.split()) == {"_socketkit_run", "__future__"}


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes_of_multiprocessing_have_the_drop_in_and_the_choice(files, method):
    printed = told(
        f"""
import multiprocessing
def look(_):
    import socketserver
    return "socketkit" in socketserver.__file__, repr(socketserver._Override.dispatcher)
if __name__ == "__main__":
    with multiprocessing.get_context({method!r}).Pool(1) as pool:
        print(*pool.map(look, [0])[0])
""",
        "--dispatcher",
        "fork:5",
    )
    assert printed == "True Forks(max_children=5)\n"


def test_socketkit_is_found_by_children_where_only_the_parent_s_folder_had_it(files):
    root = Path(__import__("importlib.util").util.find_spec("socketkit").origin).parents[1]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    Path("told.py").write_text("""
import os, subprocess, sys
os.chdir("/")
subprocess.run([sys.executable, "-c", "import socketserver; print(socketserver.__file__)"], check=True)
""")
    done = run(*SOCKETKIT, "run", str(files / "told.py"), cwd=root, env=env)
    assert done.stdout == f"{root / 'socketkit' / 'socketserver.py'}\n"


@pytest.fixture
def other_environment(tmp_path):
    """Return the interpreter of a new virtual environment that has nothing installed."""
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "other"))
    return tmp_path / "other" / "bin" / "python"


def test_a_child_in_an_environment_without_our_libraries_is_left_alone_silently(files, other_environment):
    Path("told.py").write_text(f"""
import subprocess
subprocess.run([{str(other_environment)!r}, "-c", "import http.server, sys; print(sys.modules['socketserver'].__file__)"], check=True)
""")
    done = run(*SOCKETKIT, "run", "--dispatcher", "fork", "told.py")
    assert "socketkit" not in done.stdout
    assert done.stdout.endswith("socketserver.py\n")
    assert done.stderr == ""


def test_a_socketserver_that_a_pth_file_imported_first_makes_way(files, other_environment):
    [site] = (files / "other").glob("lib/python*/site-packages")
    ours = run(sys.executable, "-c", "import attrs, os; print(os.path.dirname(os.path.dirname(attrs.__file__)))").stdout.strip()
    root = Path(__import__("importlib.util").util.find_spec("socketkit").origin).parents[1]
    (site / "early.pth").write_text(f"{ours}\n{root}\nimport http.server, wsgiref.simple_server, sys; sys.early = http.server\n")
    Path("told.py").write_text("""
import sys, http.server, wsgiref.simple_server, socketserver
assert sys.early is not http.server
assert issubclass(wsgiref.simple_server.WSGIServer, socketserver.TCPServer)
print(socketserver.__file__)
""")
    done = run(str(other_environment), "-m", "socketkit", "run", "told.py", env={**os.environ, "PYTHONPATH": ""})
    assert done.stdout == f"{root / 'socketkit' / 'socketserver.py'}\n"


LIMITED = """
import contextlib, logging, socketserver
logging.basicConfig(level=logging.INFO)
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
class Quiet(socketserver.ThreadingTCPServer):
    daemon_threads = True
    def handle_error(self, request, client_address): pass
with contextlib.suppress(KeyboardInterrupt), Quiet(("127.0.0.1", 0), Echo) as server:
    print("port", server.server_address[1], flush=True)
    server.serve_forever()
"""


@pytest.fixture
def limited(files):
    """A function that runs a program of a server under limits, and returns it with the address of its server."""
    Path("limited.py").write_text(LIMITED)
    with contextlib.ExitStack() as stack:

        def start(*options):
            program = stack.enter_context(Program(*SOCKETKIT, "run", *options, "limited.py"))
            return program, ("127.0.0.1", int(program.line(r"^port (\d+)")[0][1]))

        yield start


STRATEGIES = [(), ("--dispatcher", "fork"), ("--dispatcher", "pool:4"), ("--dispatcher", "adaptive"), ("--lifecycle", "graceful:5s")]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda words: "-".join(words) or "own")
def test_limits_admit_no_more_clients_than_they_say(limited, strategy):
    _, where = limited("--limits", "max_connections=1,overflow=reject,reply=busy", *strategy)
    with socket.create_connection(where, GUARD) as first, socket.create_connection(where, GUARD) as second:
        first.sendall(b"one\n")
        assert first.recv(10) == b"one\n"
        assert second.makefile().read() == "busy"
    while talk(where, b"two\n") == b"busy":
        pass


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda words: "-".join(words) or "own")
def test_limits_end_a_silent_client_and_a_slow_one(limited, strategy):
    program, where = limited("--limits", "first_byte=200ms,request=1s", *strategy)
    with socket.create_connection(where, GUARD) as silent, socket.create_connection(where, GUARD) as slow:
        slow.sendall(b"x")
        assert silent.recv(10) == b""
        with contextlib.suppress(ConnectionResetError):
            slow.recv(10)
        program.line(r"Quiet at \('127.0.0.1', \d+\): cut .* by limits.first_byte: no byte arrived within 0.2 s")
        program.line("by limits.request: not finished within 1 s")


def test_limits_turn_away_clients_of_other_networks(limited):
    _, where = limited("--limits", "deny=127.0.0.0/8,reply=no")
    assert talk(where, b"") == b"no"


def test_a_limit_ends_an_idle_conversation(files):
    Path("idle.py").write_text("""
import http.server, logging
logging.basicConfig(level=logging.INFO)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    print("port", server.server_port, flush=True)
    server.serve_forever()
""")
    with Program(*SOCKETKIT, "run", "--dispatcher", "adaptive", "--limits", "idle=200ms", "idle.py") as program:
        with socket.create_connection(("127.0.0.1", int(program.line("^port (.*)")[0][1])), GUARD) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert client.makefile("rb").read().startswith(b"HTTP/1.1 204")  # to the end
            program.line("by limits.idle: no request came within 0.2 s")


def test_a_limit_ends_a_client_that_takes_nothing(files):
    Path("stall.py").write_text("""
import logging, socketserver
logging.basicConfig(level=logging.INFO)
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        while True: self.request.sendall(bytes(100_000))
class Server(socketserver.ThreadingTCPServer):
    def handle_error(self, request, client_address): pass
with Server(("127.0.0.1", 0), Handler) as server:
    print("port", server.server_address[1], flush=True)
    server.serve_forever()
""")
    with Program(*SOCKETKIT, "run", "--limits", "write_stall=200ms", "stall.py") as program:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # so that the system takes nothing more on its behalf
            client.connect(("127.0.0.1", int(program.line("^port (.*)")[0][1])))
            program.line("by limits.write_stall: the client took nothing of what it was sent")


def test_a_limit_that_was_not_given_does_not_apply(limited):
    _, where = limited("--limits", "request=1000")
    assert talk(where, b"x" * 100_000 + b"\n") == b"x" * 100_000 + b"\n"  # of which `line` would let pass 65536


def test_a_server_says_at_the_end_how_its_requests_ended(limited):
    program, where = limited("--stats", "--limits=first_byte=100ms")
    assert talk(where, b"one\n") == b"one\n"
    assert talk(where, b"two\n") == b"two\n"
    with socket.create_connection(where, GUARD) as silent:
        assert silent.recv(10) == b""
        program.line("first_byte")
    assert program.stop(signal.SIGINT) == 0
    assert program.output.endswith(f"Quiet at {where}: 3 accepted: 2 finished, 1 timed out\n")


def test_limits_and_stats_are_there_in_a_program_that_starts_itself_again(files):
    printed = told(
        """
import os, sys, socketserver
print(socketserver._Override.limits.rate, socketserver._Override.stats, flush=True)
if "again" not in sys.argv:
    os.execv(sys.orig_argv[0], [sys.orig_argv[0], "-E", *sys.orig_argv[1:], "again"])
""",
        "--limits=rate=5",
        "--stats",
    )
    assert printed == "5.0 True\n" * 2


def test_a_program_can_start_itself_again_by_its_original_command_even_ignoring_the_environment(files):
    printed = told(
        """
import os, sys, socketserver
print(sys.argv, "socketkit" in socketserver.__file__, repr(socketserver._Override.dispatcher), flush=True)
if "again" not in sys.argv:
    os.chdir("/")
    command = [word if word != "told.py" else __file__ for word in sys.orig_argv]
    os.execv(command[0], [command[0], "-E", *command[1:], "again"])
""",
        "--dispatcher",
        "fork:2",
    )
    first, again = printed.splitlines()
    assert first == "['told.py'] True Forks(max_children=2)"
    assert again == f"{[str(Path('told.py').resolve()), 'again']} True Forks(max_children=2)"


def test_running_under_run_again_adds_nothing_twice(files):
    Path("inner.py").write_text("import os; print(os.environ['PYTHONPATH'].count('_dropin'), os.environ.get('SOCKETKIT_RUN_DISPATCHER'))")
    printed = told(
        "import subprocess, sys; subprocess.run([sys.executable, '-m', 'socketkit', 'run', 'inner.py'], check=True)",
        "--dispatcher",
        "fork",
    )
    assert printed == "1 None\n"


# --- what is wrong with the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Missing argument"),
        (["-m"], "-m needs the name of a MODULE"),
        (["-x", "plain.py"], "No such option"),
        (["--dispatcher"], "requires an argument"),
        (["--dispatcher", "thred", "plain.py"], "no dispatcher named 'thred', did you mean 'thread'?"),
        (["--dispatcher", "fork:many", "plain.py"], "max_children"),
        (["--limits", "line=5", "plain.py"], "limits.line: the files of classic handlers have no limit for lines"),
        (["--limits", "rat=5", "plain.py"], "did you mean 'rate'"),
        (["--lifecycle=gracefull", "plain.py"], "did you mean 'graceful'?"),
    ],
)
def test_a_wrong_command_is_told_in_a_sentence_and_starts_nothing(files, arguments, sentence):
    code, output, errors = outcome(*SOCKETKIT, "run", *arguments)
    assert (code, output) == (2, "")
    assert sentence in errors
    assert "Traceback" not in errors


def test_help_comes_before_the_program_only(files):
    assert "socketkit run -m http.server" in outcome(*SOCKETKIT, "run", "--help")[1]
    assert "['plain.py', '--help']" in outcome(*SOCKETKIT, "run", "plain.py", "--help")[1]
