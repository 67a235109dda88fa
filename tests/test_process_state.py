"""What a program has set up for its process is the same in its handlers, in the programs that these start, and after the end.

Signal handlers, the signal mask, the working directory, the umask, descriptors, limits, the environment, hooks, exit functions and
children: under every dispatcher, before and after a request, a recycled worker and a restart. Plain Python passes the same tests.
"""

import json
import os
import re
import signal
import socket

import pytest

from socketkit.testing.programs import GUARD, Program

PROGRAM = """
import atexit, json, os, resource, signal, socketserver, subprocess, sys, threading
import ctypes  # adaptive does so too; libffi then opens a descriptor, once for each process, and keeps it

SIGNALS = "SIGALRM SIGUSR1 SIGHUP SIGCHLD SIGPIPE SIGQUIT SIGWINCH SIGTTIN SIGVTALRM".split()

SEEN = '''
import json, signal
ignored = [each.name for each in sorted(signal.valid_signals()) if signal.getsignal(each) == signal.SIG_IGN and each != signal.SIGPIPE]
print(json.dumps([ignored, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))]))
'''

def on_alarm(number, frame): pass
def on_usr1(number, frame): pass
def on_error(*error): sys.__excepthook__(*error)

def name(handler):
    return handler.__name__ if callable(handler) else repr(handler)

def descriptors():
    return sorted(f"{each} {os.readlink(f'/proc/self/fd/{each}')}" for each in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{each}"))

def state():
    return {
        "handlers": {each: name(signal.getsignal(getattr(signal, each))) for each in SIGNALS},
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "cwd": os.getcwd(),
        "umask": [line for line in open("/proc/self/status") if line.startswith("Umask")],
        "limits": [resource.getrlimit(each) for each in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
        "blocking": [os.get_blocking(each) for each in (0, 1, 2, own.fileno())],
        "inheritable": [os.get_inheritable(each) for each in (0, 1, 2, own.fileno(), given)],
        "own": [os.fstat(own.fileno()).st_ino, os.lseek(own.fileno(), 0, os.SEEK_CUR)],
        "environment": {each: text for each, text in os.environ.items() if each not in {"PWD", "OLDPWD", "_"}},  # a shell's own
        "hooks": [name(sys.excepthook), name(threading.excepthook)],
        "program": json.loads(subprocess.run([sys.executable, "-c", SEEN], stdout=subprocess.PIPE, check=True, close_fds=False).stdout),
        "exit code": subprocess.run(["sh", "-c", "exit 3"]).returncode,
    }

class Tells(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            if line == b"register\\n":
                atexit.register(os.write, 1, b"registered in %d\\n" % os.getpid())
            self.wfile.write(json.dumps([os.getpid(), state()]).encode() + b"\\n")

signal.signal(signal.SIGALRM, on_alarm)
signal.signal(signal.SIGUSR1, on_usr1)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
sys.excepthook = on_error
os.umask(0o027)
os.environ["MINE"] = "as it was"
own = open(__file__)
own.read(7)
given = os.dup(0)
os.set_inheritable(given, True)
atexit.register(os.write, 1, b"bye from %d\\n" % os.getpid())

strategy, text = sys.argv[1:]
print("begins", os.getpid(), flush=True)
started = subprocess.Popen(["sh", "-c", "read line; exit 7"], stdin=subprocess.PIPE)
print("first", json.dumps(state()), flush=True)
had = descriptors()
if strategy == "plain":
    class Plain(socketserver.ForkingTCPServer if text == "fork" else socketserver.ThreadingTCPServer):
        daemon_threads = True
    server = Plain(("127.0.0.1", 0), Tells)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    port = server.server_address[1]
else:
    from socketkit import TCP, Graceful, Server
    server = Server(TCP("127.0.0.1", 0), Tells, dispatcher=text, lifecycle=Graceful(drain=10))
    server.__enter__()
    port = server.addresses[0][1]
print("port", port, flush=True)
with server:
    server.serve_forever()
print("left", json.dumps([had, descriptors()]), flush=True)
print("last", json.dumps(state()), flush=True)
started.stdin.close()
print("child", started.wait(), flush=True)
"""

PLAIN = [("plain", "thread"), ("plain", "fork")]
OURS = [("under", text) for text in ("sync", "thread", "fork", "pool:2", "adaptive", "executor", "asyncio", "prefork:2")]


@pytest.fixture
def program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    return lambda strategy, text: Program.python("program.py", strategy, text, cwd=tmp_path)


def ids(case):
    return " ".join(case) if isinstance(case, tuple) else str(case)


def place(running, count=1):
    return "127.0.0.1", int(running.line(r"^port (\d+)", count)[-1][1])


def told(address, *lines):
    """Send lines on one connection; return what the handler tells for each: the number of its process, and the state."""
    with socket.create_connection(address, timeout=GUARD) as client, client.makefile("rb") as answers:
        replies = []
        for line in lines:
            client.sendall(line + b"\n")
            replies.append(json.loads(answers.readline()))
        return replies


def printed(running, word, count=1):
    return json.loads(running.line(rf"^{word} (.*)", count)[-1][1])


@pytest.mark.parametrize("case", [*PLAIN, *OURS], ids=ids)
def test_a_handler_finds_the_process_as_the_program_left_it(program, case):
    with program(*case) as running:
        address = place(running)
        first = printed(running, "first")
        for _, state in [*told(address, b"one", b"two"), *told(address, b"three")]:
            assert state == first
        assert running.stop() == 0
        assert printed(running, "last") == first
        had, has = printed(running, "left")
        assert had == has
        assert running.line(r"^child (\d+)")[0][1] == "7"


@pytest.mark.parametrize("inner", ["sync", "pool:2", "adaptive"])
def test_a_worker_that_replaces_another_finds_it_so_too(program, inner):
    with program("under", f"prefork:1,max_requests=1/{inner}") as running:
        address = place(running)
        first = printed(running, "first")
        workers = set()
        while len(workers) < 3:
            [[pid, state]] = told(address, b"one")
            assert state == first
            workers.add(pid)
        assert running.stop() == 0
        assert printed(running, "last") == first
        assert running.line(r"^child (\d+)")[0][1] == "7"


@pytest.mark.parametrize("case", OURS, ids=ids)
def test_a_new_generation_finds_it_so_too(program, case):
    with program(*case) as running:
        address = place(running)
        first = printed(running, "first")
        told(address, b"one")  # it serves, so it handles the signal
        running.send_signal(signal.SIGUSR2)
        assert place(running, 2) == address
        again = printed(running, "first", 2)
        running.line("^child 7")  # from now on the second generation alone has the port
        second = int(running.line(r"^begins (\d+)", 2)[1][1])
        [[pid, state]] = told(address, b"one")
        assert state == first
        assert (pid == second) == (case[1] not in {"fork", "prefork:2"})
        assert {**again, "environment": 0} == {**first, "environment": 0}  # which told it of its sockets
        os.kill(second, signal.SIGTERM)
        running.line("^child 7", 2)


@pytest.mark.parametrize("case", [*PLAIN, *OURS], ids=ids)
def test_each_exit_function_runs_once_at_the_end_of_the_process_that_registered_it(program, case):
    with program(*case) as running:
        [[pid, _]] = told(place(running), b"register")
        assert running.stop() == 0
    assert re.findall(r"^bye from (\d+)", running.output, re.MULTILINE) == [str(running.pid)]
    registered = re.findall(r"^registered in (\d+)", running.output, re.MULTILINE)
    assert registered == ([] if case[1] == "fork" else [str(pid)])  # the standard library ends its children without
