"""Signals: the first drains, the second forces, the third leaves; and everything is as it was afterwards."""

import math
import os
import re
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.support import TESTS, python
from socketkit import Graceful
from socketkit.testing.clients import talk
from socketkit.testing.programs import Program, with_path

PRELUDE = """
import os, signal, socket, sys, threading, time
from socketkit import Classic, Forks, Graceful, Server, Sync, TCP, Threads
from helpers import innards

def in_background(run):
    thread = threading.Thread(target=run)
    thread.start()
    return thread

def main_thread_receives():
    '''Whether it is inside recvfrom(2). A signal just before a system call would wait for the call's end, as ever in Python.'''
    number = {"x86_64": "45", "aarch64": "207"}[os.uname().machine]
    return open(f"/proc/self/task/{os.getpid()}/syscall").read().split()[0] == number

def serving(server):
    '''Return once the server takes requests.'''
    started = threading.Event()
    server._observe([type("Watcher", (), {"server_started": lambda self, server: started.set()})()])
    return started
"""


@pytest.mark.parametrize("drain", [-1, math.nan, math.inf, "30", True])
def test_a_drain_that_is_no_time_is_refused(drain):
    with pytest.raises(ValueError, match="drain must be 0 or more seconds"):
        Graceful(drain=drain)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_stops_the_server_and_the_old_handlers_come_back(number):
    python(
        PRELUDE
        + f"""
previous = lambda number, frame: None
signal.signal(signal.SIGTERM, previous)
before = signal.getsignal(signal.SIGINT)
server = Server(TCP("127.0.0.1", 0), print, lifecycle=Graceful(drain=5))
started = serving(server)
def kill():
    started.wait()
    os.kill(os.getpid(), signal.{number})
thread = in_background(kill)
server.serve_forever()
thread.join()
assert server.state.value == "stopped"
assert server.stop().stuck == ()
assert signal.getsignal(signal.SIGINT) is before and signal.getsignal(signal.SIGTERM) is previous
"""
    )


@pytest.mark.parametrize("dispatcher", ["Sync()", "Threads()"])
def test_the_second_signal_forces_what_still_runs(dispatcher):
    python(
        PRELUDE
        + f"""
inside, in_main = threading.Event(), {dispatcher} == Sync()
def waits(request, peer, server):
    inside.set()
    assert request.recv(1) == b""
server = Server(TCP("127.0.0.1", 0), waits, dispatcher={dispatcher}, lifecycle=Graceful(drain=None))
started = serving(server)
def kill():
    started.wait()
    with socket.create_connection(server.addresses[0]) as client:
        inside.wait()
        while in_main and not main_thread_receives(): pass
        os.kill(os.getpid(), signal.SIGTERM)
        while not innards.run(server).stopping or in_main and not main_thread_receives(): pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert client.recv(1) == b""
thread = in_background(kill)
server.serve_forever()
thread.join()
assert server.stats().outcomes == {{"finished": 1}}, server.stats()
"""
    )


HOLD = (
    PRELUDE
    + """
import logging
inside = threading.Semaphore(0)
def hold(request, peer, server):
    inside.release()
    request.recv(1)
def serve(clients, **how):
    server = Server(TCP("127.0.0.1", 0), hold, dispatcher="thread", **how)
    started = serving(server)
    def run(number):
        started.wait()
        held = [socket.create_connection(server.addresses[0]) for _ in range(clients)]
        for _ in held: inside.acquire()
        os.kill(os.getpid(), number)
        for client in held: client.recv(1)
    thread = in_background(lambda: run(getattr(signal, sys.argv[1])))
    server.serve_forever()
    thread.join()
"""
)


@pytest.mark.parametrize(("number", "again"), [("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM")])
def test_a_stop_signal_is_answered_at_once(number, again):
    said = python(HOLD + "logging.basicConfig(level=logging.INFO)\nserve(1, lifecycle=Graceful(0.5))", number).stderr
    assert said.startswith(f"INFO:socketkit.lifecycles.graceful:stopping: 1 request in work, up to 0.5 s; {again} again to cut it\n")
    assert re.search(r"WARNING:socketkit.serving:tcp://127.0.0.1:\d+: stopped at the deadline: 0 finished, 1 forced, 0 stuck\n$", said), (
        said
    )


TERMINAL = """
terminal, standard_error = os.openpty()
os.dup2(standard_error, 2)
serve(2, lifecycle=Graceful(0.5))
os.set_blocking(terminal, False)
print(os.read(terminal, 1000).decode())
"""


@pytest.mark.parametrize("setup", ["", "level=logging.WARNING", "level=logging.INFO", "level=logging.INFO, stream=open(os.devnull, 'w')"])
def test_a_stop_signal_is_answered_at_a_terminal_once(setup):
    setup = f"logging.basicConfig({setup})" if setup else ""
    setup = f"sys.stderr = open(2, 'w', buffering=1, closefd=False)\n{setup}\n"  # the terminal
    said = python(HOLD + TERMINAL.replace("serve(", setup + "serve("), "SIGINT").stdout
    assert said.count("stopping: 2 requests in work, up to 0.5 s; Ctrl-C again to cut them") == 1, said


def test_without_requests_a_stop_signal_is_answered_too():
    said = python(
        PRELUDE
        + """
import logging
logging.basicConfig(level=logging.INFO)
server = Server(TCP("127.0.0.1", 0), print)
started = serving(server)
thread = in_background(lambda: (started.wait(), os.kill(os.getpid(), signal.SIGTERM)))
server.serve_forever()
thread.join()
"""
    ).stderr
    assert said == "INFO:socketkit.lifecycles.graceful:stopping: no request in work\n"


def test_a_handler_in_the_serving_thread_learns_of_the_stop_while_it_waits_for_it():
    python(
        PRELUDE
        + """
inside = threading.Event()
def waits(request, peer, server):
    stopping = server.stopping
    assert not stopping.is_set() and not stopping.wait(0) and not stopping.wait(0.001)
    inside.set()
    assert stopping.wait(20) and stopping.wait() and stopping.is_set()
    request.sendall(b"bye")
server = Server(TCP("127.0.0.1", 0), waits, dispatcher=Sync(), lifecycle=Graceful(20))
assert not server.stopping.is_set()
started = serving(server)
def kill():
    started.wait()
    with socket.create_connection(server.addresses[0]) as client:
        inside.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        assert client.recv(3) == b"bye"
thread = in_background(kill)
server.serve_forever()
thread.join()
assert server.stopping.is_set() and server.stats().outcomes == {"finished": 1}
"""
    )


def test_the_third_signal_leaves():
    python(
        PRELUDE
        + """
inside = threading.Event()
def never_ends(request, peer, server):
    inside.set()
    while True: request.recv(1)
server = Server(TCP("127.0.0.1", 0), never_ends, dispatcher=Sync(), lifecycle=Graceful(drain=None))
started = serving(server)
def kill():
    started.wait()
    with socket.create_connection(server.addresses[0]):
        inside.wait()
        while not main_thread_receives(): time.sleep(0)
        for count in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            while count == 0 and not innards.run(server).stopping or count == 1 and not innards.run(server)._deadlines: time.sleep(0)
        time.sleep(20)
threading.Thread(target=kill, daemon=True).start()
server.serve_forever()
""",
        code=128 + 15,
    )


@pytest.mark.parametrize("lame_duck", [-1, math.nan, math.inf, None, "3", True])
def test_a_lame_duck_that_is_no_time_is_refused(lame_duck):
    with pytest.raises(ValueError, match="lame_duck must be 0 or more seconds"):
        Graceful(lame_duck=lame_duck)


DISPATCHERS = ["sync", "thread", "fork", "pool", "adaptive", "asyncio", "executor"]


@pytest.mark.parametrize("dispatcher", [*DISPATCHERS, "prefork:1"])
def test_a_server_is_ready_from_its_first_turn_to_its_stop(dispatcher):
    python(
        PRELUDE
        + f"""
def upper(request, peer, server):
    request.sendall(request.recv(10).upper())
server = Server("tcp://127.0.0.1:0", upper, dispatcher={dispatcher!r})
def look():
    server_up.wait()
    while not server.ready: time.sleep(0)
    server.stop(wait=False)
    assert not server.ready
assert not server.ready
for _ in range(2):  # and again
    server_up = serving(server)
    thread = in_background(look)
    server.serve_forever()
    thread.join()
    assert not server.ready
"""
    )


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_server_that_was_started_is_ready(dispatcher):
    python(
        f"""
from socketkit import Server
server = Server("tcp://127.0.0.1:0", print, dispatcher={dispatcher!r})
for _ in range(50):
    server.start()
    assert server.ready
    server.stop()
    assert not server.ready
"""
    )


@pytest.mark.parametrize("stop", ["os.kill(os.getpid(), signal.SIGTERM)", "server.stop(wait=False)"])
@pytest.mark.parametrize("dispatcher", [*DISPATCHERS, "prefork:2"])
def test_a_lame_duck_takes_requests_and_is_not_ready(dispatcher, stop):
    python(
        PRELUDE
        + f"""
from socketkit.testing.clients import talk
def upper(request, peer, server):
    request.sendall(request.recv(10).upper())
server = Server("tcp://127.0.0.1:0", upper, dispatcher={dispatcher!r}, lifecycle=Graceful(lame_duck=0.3, drain=5))
started = serving(server)
def end():
    started.wait()
    while not server.ready: time.sleep(0)
    where = server.addresses[0]
    began = time.monotonic()
    {stop}
    while server.ready: time.sleep(0)
    served = 0
    try:
        while talk(where, b"a") == b"A":
            served += 1
            last = time.monotonic()
    except ConnectionError:
        pass
    assert served > 0 and 0.2 < last - began < 5, (served, last - began)
thread = in_background(end)
server.serve_forever()
thread.join()
assert server.state.value == "stopped"
"""
    )


@pytest.mark.parametrize(
    "again", ["os.kill(os.getpid(), signal.SIGTERM)", "server.stop(drain=0, wait=False)", "server.stop(drain=0.1, wait=False)"]
)
def test_a_lame_duck_can_be_cut_short(again):
    python(
        PRELUDE
        + f"""
server = Server("tcp://127.0.0.1:0", print, lifecycle=Graceful(lame_duck=600))
started = serving(server)
def end():
    started.wait()
    while not server.ready: time.sleep(0)
    os.kill(os.getpid(), signal.SIGTERM)
    while server.ready: time.sleep(0)
    assert server.state.value == "running"
    {again}
thread = in_background(end)
server.serve_forever()
thread.join()
assert server.state.value == "stopped"
"""
    )


def test_a_stop_that_waits_allows_for_the_lame_duck():
    python(
        PRELUDE
        + """
def waits(request, peer, server):
    request.sendall(b"in")
    request.recv(1)
    request.sendall(b"out")
server = Server("tcp://127.0.0.1:0", waits, dispatcher=Sync(), lifecycle=Graceful(lame_duck=1, drain=0)).start()
with socket.create_connection(server.addresses[0]) as client:
    assert client.recv(2) == b"in"
    thread = in_background(server.stop)
    while server.ready: time.sleep(0)
    client.sendall(b"x")
    assert client.recv(3) == b"out"  # a stop that forced after `drain` alone would have cut it off
    thread.join()
"""
    )


def test_a_lame_duck_ends_although_every_worker_is_busy():
    python(
        PRELUDE
        + """
def waits(request, peer, server):
    request.sendall(b"in")
    request.recv(1)
server = Server("tcp://127.0.0.1:0", waits, dispatcher="pool:1", lifecycle=Graceful(lame_duck=0.1, drain=0.1)).start()
with socket.create_connection(server.addresses[0]) as client:
    assert client.recv(2) == b"in"
    report = server.stop()
assert (report.finished, report.forced, report.stuck) == (0, 1, ()), report
"""
    )


@pytest.mark.parametrize("dispatcher", ["sync", "thread", "pool:1", "adaptive:1"])
def test_to_be_told_to_stop_again_is_no_reason_to_hurry(dispatcher):
    python(
        PRELUDE
        + f"""
inside, leave = threading.Event(), threading.Event()
def waits(request, peer, server):
    inside.set()
    leave.wait(20)
    server.stop(wait=False)  # by all but the first in the last round, where those in the queue are served
    request.sendall(b"done")
server = Server("tcp://127.0.0.1:0", waits, dispatcher={dispatcher!r}, lifecycle=Graceful(drain=20))
started = serving(server)
clients = []
def end():
    started.wait()
    clients.extend(socket.create_connection(server.addresses[0]) for _ in range(5))
    for client in clients:
        client.sendall(b"x")
    inside.wait()
    server.stop(wait=False)
    leave.set()
    for client in clients:
        with client:
            assert client.recv(10) == b"done"
thread = in_background(end)
server.serve_forever()
thread.join()
assert server.stats().outcomes == {{"finished": 5}}, server.stats()
"""
    )


def test_off_the_main_thread_signals_are_left_alone():
    python(
        PRELUDE
        + """
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
with Server(TCP("127.0.0.1", 0), print) as server:
    server.start()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
"""
    )


@pytest.mark.parametrize("dispatcher", [*DISPATCHERS, "prefork:1/sync", "prefork:1/pool", "prefork:1/fork"])
def test_what_a_handler_forks_has_the_programs_signal_handlers_and_ends_by_ctrl_c(dispatcher):
    source = (
        PRELUDE
        + f"""
import faulthandler, multiprocessing
faulthandler.dump_traceback_later(60, exit=True)
numbers = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGIO
signal.signal(signal.SIGUSR1, print)
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python 3.13.0 may not run handlers in a process that a thread has forked
before = [signal.getsignal(number) for number in numbers]
def child(pipe):
    pipe.send(before == [signal.getsignal(number) for number in numbers])
    signal.pause()
def handler(request, peer, server):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    print("same handlers:", ours.recv())
    process.join()
    request.sendall(b"%d" % process.exitcode)
with Server(TCP("127.0.0.1", 0), handler, dispatcher="{dispatcher}", lifecycle=Graceful(20)) as server:
    print("port", server.addresses[0][1])
    server.serve_forever()
"""
    )
    with Program.python("-c", source, env=with_path(TESTS)) as program, ThreadPoolExecutor(1) as clients:
        reply = clients.submit(talk, ("127.0.0.1", int(program.line(r"^port (\d+)")[0][1])), b"x")
        program.line("^same handlers: True")
        os.killpg(program.pid, signal.SIGINT)
        assert reply.result() == b"-2"
        assert program.wait() == 0


@pytest.mark.parametrize("lifecycle", ["Classic()", "Graceful(signals=False)"])
def test_where_signals_are_not_handled_ctrl_c_is_a_keyboard_interrupt(lifecycle):
    python(
        PRELUDE
        + f"""
server = Server(TCP("127.0.0.1", 0), print, lifecycle={lifecycle})
started = serving(server)
def kill():
    started.wait()
    os.kill(os.getpid(), signal.SIGINT)
thread = in_background(kill)
try:
    with server:
        server.serve_forever()
except KeyboardInterrupt:
    thread.join()
else:
    raise AssertionError("no KeyboardInterrupt")
"""
    )


def test_stop_in_a_signal_handler_at_many_moments_never_hangs():
    python(
        PRELUDE
        + """
import random
seed = random.randrange(1 << 30)
print("seed", seed)
random.seed(seed)
for _ in range(300):
    server = Server(TCP("127.0.0.1", 0), print, lifecycle=Graceful(drain=1, signals=False))
    signal.signal(signal.SIGALRM, lambda number, frame: server.stop())
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.003))
    server.serve_forever()
    signal.setitimer(signal.ITIMER_REAL, 0)
    server.server_close()
"""
    )


def test_a_server_started_in_the_background_is_stopped_when_the_program_exits():
    result = python(
        PRELUDE
        + """
class Watcher:
    def server_stopped(self, server, report): print("stopped", report, flush=True)
server = Server(TCP("127.0.0.1", 0), print, observers=[Watcher()])
server.start()
"""
    )
    assert result.stdout == "stopped 0 finished, 0 forced, 0 stuck\n"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("dispatcher", [*DISPATCHERS, "prefork:1"])
def test_the_end_of_the_program_drains_although_a_client_is_idle(dispatcher, when):
    if (dispatcher, when) == ("executor", "after"):
        pytest.skip("Python's executors refuse work once the main thread has ended")
    python(
        PRELUDE
        + f"""
import faulthandler
faulthandler.dump_traceback_later(20, exit=True)
def handler(request, peer, server):
    request.sendall(b"x")
    request.recv(10)
def serve():
    global client
    if {when == "after"}:
        threading.main_thread().join()
    server = Server(TCP("127.0.0.1", 0), handler, dispatcher="{dispatcher}", lifecycle=Graceful(0.2)).start()
    client = socket.create_connection(server.addresses[0], timeout=20)
    assert client.recv(1) == b"x"
in_background(serve) if {when == "after"} else serve()
"""
    )


@pytest.mark.skipif((3, 12, 0) <= sys.version_info < (3, 12, 2), reason="this Python starts no threads once the main thread has ended")
@pytest.mark.parametrize("dispatcher", ["thread", "pool", "adaptive", "asyncio", "fork"])
def test_a_server_serves_as_long_as_the_programs_own_threads_run(dispatcher):
    python(
        PRELUDE
        + f"""
import faulthandler
faulthandler.dump_traceback_later(20, exit=True)
def echo(request, peer, server):
    while data := request.recv(10):
        request.sendall(data)
def use():
    threading.main_thread().join()
    idle = socket.create_connection(server.addresses[0], timeout=5)
    for number in range(20):
        with socket.create_connection(server.addresses[0], timeout=5) as client:
            client.sendall(b"%d" % number)
            assert client.recv(10) == b"%d" % number
    os.write(1, b"used\\n")
server = Server(TCP("127.0.0.1", 0), echo, dispatcher="{dispatcher}", lifecycle=Graceful(0.2)).start()
threading.Thread(target=use).start()
"""
    ).stdout.index("used")


def test_an_idle_server_makes_no_system_call(tmp_path):
    import shutil

    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    python(
        PRELUDE
        + f"""
import subprocess
server = Server(TCP("127.0.0.1", 0), print, dispatcher=Threads()).start()
tracer = subprocess.Popen(["strace", "-f", "-q", "-o", {str(trace)!r}, "-p", str(os.getpid()), "-e", "trace=poll,ppoll,epoll_wait,select,pselect6,futex"], stderr=subprocess.PIPE, text=True)
while "TracerPid:\\t0" in open("/proc/self/status").read(): pass
time.sleep(1.5)  # nothing is ordered by this: it is the time in which nothing happens
tracer.terminate()
tracer.wait()
server.stop()
""",
    )
    waits = [line for line in trace.read_text().splitlines() if "epoll_wait" in line]
    assert len(waits) <= 1, waits  # the one it was in, interrupted by the tracer


@pytest.mark.parametrize("begin", ["os.kill(os.getpid(), signal.SIGTERM)", "server.stop(wait=False)", "server.stop(0.3, wait=False)"])
def test_a_handler_that_holds_the_thread_which_serves_is_cut_at_the_deadline(begin):
    python(
        PRELUDE
        + f"""
inside = threading.Event()
def waits(request, peer, server):
    inside.set()
    assert request.recv(1) == b""
server = Server(TCP("127.0.0.1", 0), waits, dispatcher=Sync(), lifecycle=Graceful(drain=0.3))
started = serving(server)
def stop():
    started.wait()
    with socket.create_connection(server.addresses[0]) as client:
        inside.wait()
        while not main_thread_receives(): pass
        {begin}
        assert client.recv(1) == b""
thread = in_background(stop)
server.serve_forever()
thread.join()
assert server.stop().forced == 1, server.stop()
assert server.stats().outcomes == {{"finished": 1}}
assert threading.active_count() == 1, threading.enumerate()
"""
    )


def test_a_handler_that_goes_on_even_then_is_told_of_with_its_stack():
    python(
        PRELUDE
        + """
import logging
from socketkit._system import logs
told, lines = threading.Event(), []
class Told(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
        told.set()
logging.getLogger("socketkit").addHandler(Told())
def deaf(request, peer, server):
    os.kill(os.getpid(), signal.SIGTERM)
    assert told.wait(20)
server = Server(TCP("127.0.0.1", 0), deaf, dispatcher=Sync(), lifecycle=Graceful(drain=0.1))
started = serving(server)
def visit():
    started.wait()
    socket.create_connection(server.addresses[0]).close()
thread = in_background(visit)
server.serve_forever()
thread.join()
assert "runs on after the deadline" in lines[0] and "in deaf" in lines[0], lines
"""
    )


def test_what_a_handler_has_used_of_the_deadline_is_gone_when_the_drain_begins():
    python(
        PRELUDE
        + """
from socketkit.testing import FakeClock
clock, drains = FakeClock(), []
class Noting(Graceful):
    def serve(self, serving):
        report = super().serve(serving)
        drains.append(serving.left())
        return report
def last(request, peer, server):
    server.stop(wait=False)
    clock.advance(7.0)
server = Server(TCP("127.0.0.1", 0), last, dispatcher=Sync(), lifecycle=Noting(drain=10.0), clock=clock)
started = serving(server)
def visit():
    started.wait()
    socket.create_connection(server.addresses[0]).close()
thread = in_background(visit)
server.serve_forever()
thread.join()
assert drains == [10.0 - 7.0], drains
"""
    )


GROUP = """
import os, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler
from socketkit import Forks, Graceful, Server, TCP

def hold(request, client_address, server):
    word = request.recv(10)
    if word == b"grandchild":
        pid = os.fork() or os.execlp("sleep", "sleep", "100")
        print("forked", flush=True)
        request.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return
    print("got", word, flush=True)
    request.sendall(word + request.recv(10))

server = Server(TCP("127.0.0.1", 0), hold, dispatcher=Forks(), lifecycle=Graceful(drain=float(sys.argv[1])))
with server:
    print("port", server.addresses[0][1], flush=True)
    server.serve_forever()
print("ends", server.stop().forced, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_to_the_whole_process_group_lets_forked_requests_finish(number):
    with Program.python("-c", GROUP, "20") as program:
        port = int(program.line(r"port (\d+)")[0][1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"one ")
            program.line("got b'one '")
            os.killpg(program.pid, number)
            client.sendall(b"two")
            assert client.makefile("rb").read() == b"one two"
        assert program.wait() == 0
        program.line("ends 0")


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_forked_request_that_goes_on_is_ended_at_the_deadline(whole_group):
    with Program.python("-c", GROUP, "0.2") as program:
        port = int(program.line(r"port (\d+)")[0][1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"one ")
            program.line("got b'one '")
            (os.killpg if whole_group else os.kill)(program.pid, signal.SIGTERM)
            assert client.recv(1) == b""
        assert program.wait() == 0
        program.line("ends 1")


def test_a_stop_signal_to_the_whole_process_group_ends_a_program_that_a_forked_request_has_started():
    with Program.python("-c", GROUP, "20") as program:
        port = int(program.line(r"port (\d+)")[0][1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"grandchild")
            program.line("forked")
            os.killpg(program.pid, signal.SIGTERM)
            assert client.makefile("rb").read() in {b"-15", b"143"}  # 143: just before it becomes the program
        assert program.wait() == 0
