"""Units of work, or only their messages, in any executor."""

import contextlib
import functools
import logging
import os
import pathlib
import queue
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing import resource_tracker

import pytest

from helpers.support import SERVE, TESTS, gone, python, wait_until
from socketkit import TCP, Graceful, Server, StreamRequestHandler
from socketkit._system import logs
from socketkit.dispatchers.executor import Executor
from socketkit.errors import ConfigError, IncompatibleError
from socketkit.handlers import ConversationHandler
from socketkit.testing.clients import address, talk
from socketkit.testing.programs import Program, with_path

FOLDER = pathlib.Path(__file__).parent
ANYWHERE = TCP("127.0.0.1", 0)
PATH = with_path(TESTS, FOLDER)
SINCE = (3, 14)  # the first Python whose executors have interpreters

needs_interpreters = pytest.mark.skipif(sys.version_info < SINCE, reason="InterpreterPoolExecutor is new in Python 3.14")
INTERPRETERS = pytest.param("two_interpreters", marks=needs_interpreters)


@pytest.fixture(scope="module")
def executors():
    """Return the module with executors and handlers, which the processes of executors can import too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setenv("PYTHONPATH", PATH["PYTHONPATH"])
        import executors

        resource_tracker.ensure_running()  # before any test: it is the interpreter's, and stays
        yield executors
    del sys.modules["executors"]


class Errors(Server):
    """A server that keeps what handlers raise."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.errors = queue.SimpleQueue()

    def handle_error(self, request, client_address):
        self.errors.put(sys.exc_info()[1])


class Upper(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


# --- whole units in threads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["two_threads", "Inline"])
def test_units_run_in_the_executor_that_the_factory_returns(executors, factory):
    with Server(ANYWHERE, Upper, dispatcher=Executor(f"executors:{factory}")).start() as server:
        for _ in range(5):
            assert talk(server.addresses[0], b"hello\n") == b"HELLO\n"
    assert server.stats().outcomes == {"finished": 5}


def test_the_factory_may_be_a_callable():
    threads = set()

    def handle(request, client_address, server):
        threads.add(threading.current_thread().name.partition("_")[0])

    factory = functools.partial(ThreadPoolExecutor, 2, thread_name_prefix="mine")
    with Server(ANYWHERE, handle, dispatcher=Executor(factory)).start() as server:
        assert talk(server.addresses[0], b"") == b""
    assert threads == {"mine"}


@pytest.mark.parametrize(("limit", "most"), [(None, 2), (1, 1), (5, 2)])
def test_no_more_is_taken_than_the_limit(executors, limit, most):
    inside, leave, running = threading.Semaphore(0), threading.Event(), []

    def handle(request, client_address, server):
        request.recv(1)
        running.append(server.stats().active)
        inside.release()
        leave.wait(10)

    dispatcher = Executor("executors:two_threads", limit=limit)
    with Server(ANYWHERE, handle, dispatcher=dispatcher).start() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(server.addresses[0], timeout=10)) for _ in range(8)]
        for client in clients:
            client.sendall(b"x")
        for _ in range(most):
            assert inside.acquire(timeout=10)
        assert not inside.acquire(timeout=0.1)
        leave.set()
        assert [client.recv(1) for client in clients] == [b""] * 8
        server.stop()
    assert server.stats().outcomes == {"finished": 8}


def test_an_executor_that_does_not_say_how_much_it_runs_gets_32_units(executors):
    leave, inside = threading.Event(), threading.Semaphore(0)

    class Eager(executors.Executor):
        def submit(self, function, /, *arguments):
            future = executors.Future()
            threading.Thread(target=lambda: future.set_result(function(*arguments))).start()
            return future

    def handle(request, client_address, server):
        inside.release()
        leave.wait(10)

    with Server(ANYWHERE, handle, dispatcher=Executor(Eager, defer=0)).start() as server, contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(server.addresses[0], timeout=10))
        for _ in range(32):
            assert inside.acquire(timeout=10)
        assert not inside.acquire(timeout=0.1)
        leave.set()
        for _ in range(8):
            assert inside.acquire(timeout=10)
        server.stop()
    assert server.stats().outcomes == {"finished": 40}


def test_conversations_hold_no_thread_between_requests(executors):
    class Lines(ConversationHandler):
        def handle_one_request(self):
            self.wfile.write(self.rfile.readline().upper())

    with Server(ANYWHERE, Lines, dispatcher=Executor("executors:two_threads")).start() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(server.addresses[0], timeout=10)) for _ in range(6)]
        for text in (b"a\n", b"b\n"):
            for client in clients:
                client.sendall(text)
                assert client.recv(10) == text.upper()
    assert server.stats().outcomes == {"finished": 6}


@pytest.mark.parametrize("speaks_first", [True, False])
def test_a_unit_that_the_executor_does_not_run_is_refused(executors, caplog, speaks_first):
    handler = type("Handler", (Upper,), {"speaks_first": speaks_first})
    with Server(ANYWHERE, handler, dispatcher=Executor(executors.Refusing)).start() as server:
        for _ in range(3):
            with socket.create_connection(server.addresses[0], timeout=10) as client:
                assert client.recv(10) == b""
    assert server.stats().outcomes == {"refused": 3}
    assert "the executor cannot run it: cannot pickle that" in caplog.text


def test_a_unit_that_the_executor_refuses_and_runs_all_the_same_has_one_outcome():
    held = threading.Event()

    class Late(ThreadPoolExecutor):  # as ThreadPoolExecutor does when the system has no thread for it
        def submit(self, function, /, *arguments):
            super().submit(held.wait)
            self.future = super().submit(function, *arguments)
            raise RuntimeError("can't start new thread")

    late = Late(1)
    with Server(ANYWHERE, Upper, dispatcher=Executor(lambda: late), lifecycle=Graceful(drain=5)).start() as server:
        with socket.create_connection(server.addresses[0], timeout=10) as client:
            client.sendall(b"hello\n")
            with contextlib.suppress(ConnectionError):
                assert client.recv(10) == b""
        held.set()
        late.future.result(10)
        began = time.monotonic()
        server.stop()
    assert time.monotonic() - began < 2, "it waited for a unit that nobody runs"
    assert server.stats().outcomes == {"refused": 1}


@pytest.mark.parametrize("taken", [False, True])
def test_ctrl_c_while_a_unit_is_given_away_ends_serving(taken):
    class Interrupted(ThreadPoolExecutor):
        def submit(self, *work):
            if taken:
                super().submit(*work).result()
            raise KeyboardInterrupt

    raised = []

    def serve():
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            raised.append(True)

    with Server(TCP("127.0.0.1", 0), Upper, dispatcher=Executor(Interrupted), lifecycle=Graceful(drain=10)) as server:
        serving = threading.Thread(target=serve)
        serving.start()
        assert talk(server.addresses[0], b"hello\n") == (b"HELLO\n" if taken else b"")
        serving.join(10)
    assert raised
    assert server.stats().outcomes == ({"finished": 1} if taken else {"refused": 1})


def test_threads_that_cannot_start_are_replaced_with_the_next_request(caplog):
    made = []

    def factory():
        made.append(ThreadPoolExecutor(1, initializer=None if made else lambda: 1 / 0))
        return made[-1]

    logging.getLogger("concurrent.futures").disabled = True
    try:
        with Server(ANYWHERE, Upper, dispatcher=Executor(factory)).start() as server:
            assert talk(server.addresses[0], b"") == b""
            assert talk(server.addresses[0], b"hello\n") == b"HELLO\n"
    finally:
        logging.getLogger("concurrent.futures").disabled = False
    assert server.stats().outcomes == {"refused": 1, "finished": 1}
    assert "ThreadPoolExecutor is broken; a new one replaces it" in caplog.text


def test_a_handler_may_close_its_server(executors):
    def handle(request, client_address, server):
        server.server_close()
        request.sendall(b"good bye")

    server = Server(ANYWHERE, handle, dispatcher=Executor("executors:two_threads")).start()
    assert talk(server.addresses[0], b"") == b"good bye"
    server.stop()


def test_it_can_be_stopped_while_it_is_full(executors):
    inside = threading.Semaphore(0)

    def handle(request, client_address, server):
        inside.release()
        request.sendall(request.recv(1))

    dispatcher = Executor("executors:two_threads", limit=1, defer=0)
    with Server(ANYWHERE, handle, dispatcher=dispatcher).start() as server:
        with socket.create_connection(server.addresses[0], timeout=10) as client:
            assert inside.acquire(timeout=10)
            server.stop(wait=False)
            deadline = time.monotonic() + 10
            while server.state.value == "running":
                assert time.monotonic() < deadline
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    assert server.stats().outcomes == {"finished": 1}


def test_it_serves_again_after_it_was_stopped(executors):
    server = Server(ANYWHERE, Upper, dispatcher=Executor("executors:two_threads"))
    for _ in range(3):
        with server.start():
            assert talk(server.addresses[0], b"a\n") == b"A\n"
    assert server.stats().outcomes == {"finished": 3}


# --- messages in processes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes(executors):
    """Return a server with processes, for tests that leave it as it is."""
    with Errors(ANYWHERE, executors.Worker, dispatcher=Executor("executors:two_processes")).start() as server:
        with contextlib.ExitStack() as stack:  # all its threads and processes are there before a test's account is taken
            clients = [stack.enter_context(socket.create_connection(server.addresses[0], timeout=20)) for _ in range(2)]
            for client in clients:
                client.sendall(b"hold 0.2\n")
            assert [client.recv(10) for client in clients] == [b"held\n"] * 2
        yield server


def conversation(server):
    client = socket.create_connection(server.addresses[0], timeout=20)
    return client, client.makefile("rwb", buffering=0)


def tell(server, *lines, kept=()):
    """Send the lines, return what comes back, and wait until the server holds only the connections kept."""
    answers = talk(server.addresses[0], b"".join(line + b"\n" for line in lines), timeout=20)
    deadline = time.monotonic() + 10
    while server.stats().active > len(kept):  # its end of the connection is closed shortly after ours
        assert time.monotonic() < deadline
    return answers


def test_replies_come_from_other_processes(processes):
    pid = int(tell(processes, b"pid"))
    assert pid != os.getpid()
    assert tell(processes, b"upper a", b"quiet", b"upper b") == b"A\nB\n"


def test_only_messages_travel(processes):
    assert tell(processes, b"attributes") == b"[]\n"


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        (b"fail no good", ValueError, "no good"),
        (b"fail_oddly too", RuntimeError, "UnpicklableError: too"),
        (b"number", TypeError, "Worker.reply must return bytes or None, not int"),
        (b"function", TypeError, "Worker.reply must return bytes or None, not function"),
    ],
)
def test_what_goes_wrong_there_is_that_requests_failure_here(processes, line, kind, text):
    before = processes.stats().outcomes.get("failed", 0)
    assert tell(processes, b"upper a", line, b"upper b") == b"A\n"
    error = processes.errors.get(timeout=10)
    assert type(error) is kind
    assert str(error) == text
    assert tell(processes, b"upper next") == b"NEXT\n"
    assert processes.stats().outcomes["failed"] == before + 1


def test_an_exit_there_ends_only_its_request(processes, caplog):
    assert tell(processes, b"exit") == b""
    assert tell(processes, b"upper next") == b"NEXT\n"
    assert logs.flush()
    assert "a handler raised SystemExit; only its request ended" in caplog.text


@pytest.mark.leaves("children", "descriptors", "threads", reason="one pool in place of another")
def test_a_process_that_dies_fails_the_requests_in_it_and_no_later_one(processes, caplog):
    with contextlib.ExitStack() as stack:
        client, file = conversation(processes)
        stack.enter_context(client)
        stack.enter_context(file)
        file.write(b"upper first\n")
        assert file.readline() == b"FIRST\n"
        assert tell(processes, b"die", kept=[client]) == b""
        assert "terminated abruptly" in str(processes.errors.get(timeout=10))
        file.write(b"upper second\n")  # a connection that had nothing in it goes on
        assert file.readline() == b"SECOND\n"
        assert tell(processes, b"die", kept=[client]) == b""
    assert tell(processes, b"upper third") == b"THIRD\n"
    assert logs.flush()
    assert "ProcessPoolExecutor is broken; a new one replaces it" in caplog.text


PROGRAM = """
import socket, sys, threading, time
from helpers import innards
from concurrent.futures import ProcessPoolExecutor
import executors
from socketkit import Graceful, Server, TCP, UDP
from socketkit.dispatchers.executor import Executor
from socketkit.testing.clients import ask, talk
"""


def program(source, *arguments, **options):
    return python(PROGRAM + source, *arguments, env=PATH, **options)


@pytest.mark.parametrize("factory", ["two_processes", "two_forks", "two_default", INTERPRETERS])
def test_lengths_and_datagrams_work_too(factory):
    program(
        """
with Server(TCP("127.0.0.1", 0), executors.Lengths, dispatcher=Executor("executors:FACTORY")).start() as server:
    assert talk(server.addresses[0], b"\\0\\0\\0\\7upper a", 20) == b"\\0\\0\\0\\1A"
with Server(UDP("127.0.0.1", 0), executors.Worker, dispatcher=Executor("executors:FACTORY")).start() as server:
    assert ask(server.addresses[0], b"upper a", 20) == b"A"
assert server.stats().outcomes == {"finished": 1}, server.stats()
""".replace("FACTORY", factory)
    )


def test_no_more_messages_are_there_than_the_limit():
    program(
        """
with Server(TCP("127.0.0.1", 0), executors.Worker, dispatcher=Executor("executors:two_processes", limit=1)).start() as server:
    assert talk(server.addresses[0], b"upper a\\n", 20) == b"A\\n"  # a process is there
    clients = [socket.create_connection(server.addresses[0], timeout=20) for _ in range(3)]
    began = time.monotonic()
    for client in clients:
        client.sendall(b"hold 0.2\\n")
    for client in clients:
        assert client.recv(100) == b"held\\n"
        client.close()
    assert time.monotonic() - began >= 0.6
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("socketkit-executor")]
    assert names == ["socketkit-executor-1"], names
"""
    )


@pytest.mark.parametrize("factory", ["two_processes", "two_forks"])
def test_a_drain_kills_what_does_not_end(factory):
    program(
        """
server = Server(TCP("127.0.0.1", 0), executors.Worker, dispatcher=Executor("executors:FACTORY")).start()
assert talk(server.addresses[0], b"upper a\\n", 20) == b"A\\n"
with socket.create_connection(server.addresses[0]) as client:
    client.sendall(b"hold 60\\n")
    while not server.stats().active:
        pass
    time.sleep(0.2)
    began = time.monotonic()
    report = server.stop(drain=0.1)
    assert time.monotonic() - began < 5
assert (report.finished, report.forced, report.stuck) == (0, 1, ()), report
assert server.stats().outcomes == {"finished": 1, "failed": 1}, server.stats()
""".replace("FACTORY", factory)
    )


def test_forked_processes_hold_neither_listener_nor_connection():
    program(
        """
import glob, os
server = Server(TCP("127.0.0.1", 0), executors.Worker, dispatcher=Executor("executors:two_forks")).start()
where = server.addresses[0]
listener = f"socket:[{os.fstat(server.fileno()).st_ino}]"
def has(held, pid):
    return held in [os.path.basename(os.path.realpath(path)) for path in glob.glob(f"/proc/{pid}/fd/*")]
def has_listener(pid):
    return has(listener, pid)
with socket.create_connection(where) as client:
    client.sendall(b"upper a\\n")
    assert client.recv(10) == b"A\\n"
    [entry] = innards.active(server)
    connection = f"socket:[{os.fstat(entry.request.fileno()).st_ino}]"
    pids = set()
    while len(pids) < 2:
        pids.add(talk(where, b"pid\\n").decode().strip())
    for each in (listener, connection):
        assert has(each, os.getpid())
        assert not [pid for pid in pids if has(each, pid)], each
assert talk(where, b"die\\n") == b""
pids = set()
while len(pids) < 2:
    pids.add(talk(where, b"pid\\n").decode().strip())
assert not any(map(has_listener, pids)), "those that replace them"
assert not server.stop().stuck
with socket.create_server(where) as again:  # nobody else has it
    pass
"""
    )


def test_a_handler_of_the_program_itself_runs_in_forked_processes_only():
    ran = program(
        """
import multiprocessing
from functools import partial
from socketkit.errors import IncompatibleError
from socketkit.handlers.messages import MessageHandler

class Own(MessageHandler):
    def reply(self, message, client_address):
        return message.upper()

with Server(TCP("127.0.0.1", 0), Own, dispatcher=Executor("executors:two_forks")).start() as server:
    assert talk(server.addresses[0], b"a\\n") == b"A\\n"
try:
    Server(TCP("127.0.0.1", 0), Own, dispatcher=Executor("executors:two_processes")).start()
except IncompatibleError as error:
    print(error)
try:
    Executor(partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn"))).check(Own)
except IncompatibleError as error:
    print(error)
print(multiprocessing.get_start_method(allow_none=True))
"""
    )
    sentence = (
        "Executor starts processes by {}, which cannot import Own from the program's main file; define it in a module that can be imported"
    )
    assert ran.stdout.splitlines() == [sentence.format("forkserver"), sentence.format("spawn"), "None"]


@pytest.mark.parametrize("hold", ["", "hold 60\\n"], ids=["idle", "full"])
def test_a_signal_that_another_thread_gets_stops_it_at_once(hold):
    program(
        """
import signal
server = Server(TCP("127.0.0.1", 0), executors.Worker, dispatcher=Executor("executors:two_processes", limit=1), lifecycle=Graceful(0.1))

def signal_this_thread():
    with socket.create_connection(server.addresses[0]) as client:
        client.sendall(b"upper a\\n")
        assert client.recv(10) == b"A\\n"
        client.sendall(b"HOLD")
        time.sleep(0.2)  # the main thread is in a system call, and will not be interrupted
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        client.recv(10)

with server:
    thread = threading.Thread(target=signal_this_thread)
    thread.start()
    server.serve_forever()
    thread.join()
""".replace("HOLD", hold),
        guard=10,
    )


# --- composing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["", "module", ":name", "module:", 5, None], ids=repr)
def test_a_factory_that_cannot_be_one_is_refused(factory):
    with pytest.raises(ValueError, match="factory must be module:name, or a callable that returns an executor"):
        Executor(factory)


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="limit must be a whole number of at least 1"):
        Executor("a:b", limit=0)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nowhere:there", r"'nowhere:there' cannot be imported \(ModuleNotFoundError"),
        ("executors:nothing", r"'executors:nothing' cannot be imported \(AttributeError"),
        ("executors:answer", r"'executors:answer' cannot be created \(TypeError"),
        ("executors:broken", r"'executors:broken' cannot be created \(ZeroDivisionError: no executor today\)"),
        ("builtins:dict", "'builtins:dict' returned a dict; it must return a concurrent.futures.Executor"),
    ],
)
def test_a_factory_that_returns_no_executor_is_refused_at_the_start(executors, factory, message):
    server = Server(ANYWHERE, Upper, dispatcher=Executor(factory))
    with pytest.raises(ConfigError, match=message):
        server.start()
    server.server_close()


@pytest.mark.parametrize("factory", [ProcessPoolExecutor, functools.partial(ProcessPoolExecutor, 2)], ids=["class", "partial"])
def test_processes_are_refused_for_other_handlers_at_composition(factory):
    sentence = "Executor has processes, which cannot run Upper; derive it from MessageHandler, or use threads"
    with pytest.raises(IncompatibleError, match=sentence):
        Executor(factory).check(Upper)


def test_processes_that_only_the_factory_knows_are_refused_at_the_start(executors):
    server = Server(ANYWHERE, Upper, dispatcher=Executor("executors:two_processes"))
    with pytest.raises(IncompatibleError, match="has processes, which cannot run Upper"):
        server.start()
    server.server_close()


def test_a_handler_that_processes_cannot_import_is_refused(executors):
    class Inner(executors.Worker):
        pass

    with pytest.raises(IncompatibleError, match=r"cannot send .*Inner to a process .*; define it at the top of a module"):
        Executor(ProcessPoolExecutor).check(Inner)
    Executor(ProcessPoolExecutor).check(executors.Worker)
    Executor(executors.two_threads).check(Inner)


# --- signals to the group ---------------------------------------------------------------------------------------------

POOL = """
import executors, faulthandler, os
from socketkit import *
from socketkit.dispatchers.executor import Executor
faulthandler.dump_traceback_later(60, exit=True)
with Server(TCP("127.0.0.1", 0), executors.Worker, dispatcher=Executor(executors.{}), lifecycle=Graceful(20)) as server:
    print("port", server.addresses[0][1])
    server.serve_forever()
"""


@contextlib.contextmanager
def pool_of(factory):
    """Run a server whose pool has two processes; give the program and a connected client's file."""
    with Program.python("-c", POOL.format(factory), env=PATH) as program:
        program.address = "127.0.0.1", int(program.line(r"^port (\d+)")[0][1])
        with socket.create_connection(program.address, timeout=20) as client, client.makefile("rwb", buffering=0) as file:
            yield program, file


def running(group):
    """Return the processes of a process group that have not ended. Source: proc(5)."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            number, _, rest = stat.read_text().rpartition(")")
            state, _parent, its_group = rest.split()[:3]
            if state != "Z" and int(its_group) == group:
                found.append(number)
    return found


def asked(file, message):
    file.write(message + b"\n")
    return file.readline().strip()


@pytest.mark.parametrize("factory", ["two_forks", "two_spawned", "two_processes", "two_default", INTERPRETERS])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_lets_running_messages_finish_and_then_ends_the_processes(factory, number, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pool_of(factory) as (program, file), socket.create_connection(program.address, timeout=20) as other, fifo.open("r+b", 0) as both:
        file.write(b"hold_until %s\n" % os.fsencode(fifo))
        other.sendall(b"hold_until %s\n" % os.fsencode(fifo))
        pids = [int(match[1]) for match in program.line(r"^holding (\d+)", 2)]
        os.killpg(program.pid, number)
        both.write(b"12")
        assert file.readline() == other.recv(100) == b"held\n"
        assert program.wait() == 0
        assert gone(*pids)
        wait_until(lambda: not running(program.pid))  # the fork server and the resource tracker, too
        assert "Traceback" not in program.output
        assert "Warning" not in program.output


@pytest.mark.parametrize("factory", ["two_forks", "two_spawned", "two_processes"])
def test_processes_end_when_their_server_is_killed(factory):
    with pool_of(factory) as (program, file):
        assert asked(file, b"upper a") == b"A"
        os.kill(program.pid, signal.SIGKILL)
        wait_until(lambda: not running(program.pid))
        assert "Traceback" not in program.output


@pytest.mark.parametrize("factory", ["two_forks", "two_spawned", "two_processes"])
def test_a_pool_that_breaks_leaves_no_process_behind(factory):
    with pool_of(factory) as (program, file):
        pids = {int(asked(file, b"pid")) for _ in range(20)}
        assert asked(file, b"die") == b""
        assert gone(*pids)
        assert program.stop() == 0
        wait_until(lambda: not running(program.pid))


SCRIPT = """
from executors import Worker
from socketkit import Executor, Server, TCP
if __name__ == "__main__":
    with Server(TCP("127.0.0.1", 0), Worker, dispatcher=Executor("executors:{}")) as server:
        print("serving", *server.urls, "(under run)", flush=True)
        server.serve_forever()
"""


@pytest.mark.parametrize("command", ["serve", "run"])
@pytest.mark.parametrize("factory", ["two_forks", "two_spawned", "two_processes", "two_default", INTERPRETERS])
def test_ctrl_c_ends_a_command_and_all_its_processes_in_silence(command, factory, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(factory))
    how = {
        "serve": ("executors:Worker", "--listen", "tcp://127.0.0.1:0", "--dispatcher", f"executor:executors:{factory}"),
        "run": (str(tmp_path / "script.py"),),
    }
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Program.python("-m", "socketkit", command, *how[command], env=PATH) as program, contextlib.ExitStack() as stack:
        where = address(program.serving()[0])
        clients = [stack.enter_context(socket.create_connection(where, timeout=20)) for _ in range(2)]
        for client in clients:
            client.sendall(b"hold_until %s\n" % os.fsencode(fifo))
        program.line("^holding", 2)  # both have started
        with fifo.open("r+b", 0) as both:
            both.write(b"12")
            assert [client.recv(10) for client in clients] == [b"held\n"] * 2
        os.killpg(program.pid, signal.SIGINT)
        assert program.wait() == 0
        wait_until(lambda: not running(program.pid))
    assert len(program.output.splitlines()) == 3, program.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_does_not_disturb_a_process_that_is_still_starting(number, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    starting = f'if __name__ == "__mp_main__":\n    print("starting", flush=True)\n    open({str(fifo)!r}).close()\n'
    (tmp_path / "script.py").write_text(starting + SCRIPT.format("two_spawned"))
    with Program.python(str(tmp_path / "script.py"), env=PATH) as program:
        with socket.create_connection(address(program.serving()[0]), timeout=20) as client:
            client.sendall(b"upper a\n")
            program.line("^starting")
            os.killpg(program.pid, number)
            with fifo.open("r+b", 0):
                assert client.recv(10) == b"A\n"
                assert program.wait() == 0
        wait_until(lambda: not running(program.pid))
    assert "Traceback" not in program.output


def test_a_program_that_a_process_starts_does_not_ignore_signals():
    with pool_of("two_forks") as (_program, file):
        assert asked(file, b"ignored_by_programs") == b"[<Signals.SIGPIPE: 13>, <Signals.SIGXFSZ: 25>]"


# --- interpreters -----------------------------------------------------------------------------------------------------

INTERPRETER_POOL = "concurrent.futures:InterpreterPoolExecutor"

SERVED = """
class Upper(MessageHandler):
    def reply(self, message, client_address):
        return message.upper()
"""


@needs_interpreters
def test_replies_come_from_interpreters_of_the_same_process():
    program(
        """
import os
with Server(TCP("127.0.0.1", 0), executors.Worker, dispatcher="executor:concurrent.futures:InterpreterPoolExecutor").start() as server:
    first = talk(server.addresses[0], b"interpreter\\npid\\nupper a\\n", 20).split()
    assert first[0] != b"0" and first[1:] == [b"%d" % os.getpid(), b"A"], first
    for line in (b"fail no good\\n", b"exit\\n", b"number\\n"):
        assert talk(server.addresses[0], line + b"upper a\\n", 20) == b""
    assert talk(server.addresses[0], b"upper a\\n", 20) == b"A\\n"
assert server.stats().outcomes == {"finished": 2, "failed": 3}, server.stats()
"""
    )


@needs_interpreters
def test_interpreters_are_refused_for_handlers_that_they_cannot_run_at_composition(executors):
    class Inner(executors.Worker):
        pass

    for factory in (INTERPRETER_POOL, "concurrent.futures:ProcessPoolExecutor"):
        with pytest.raises(IncompatibleError, match="which cannot run Upper; derive it from MessageHandler, or use threads"):
            Server(ANYWHERE, Upper, dispatcher=Executor(factory))
    with pytest.raises(IncompatibleError, match=r"cannot send .*Inner to an interpreter \(.*\); define it at the top of a module"):
        Executor(INTERPRETER_POOL).check(Inner)
    own = type("Own", (executors.Worker,), {"__module__": "__main__"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "Own", own, raising=False)
        with pytest.raises(IncompatibleError, match="has interpreters, which cannot import Own from the program's main file; define it in"):
            Executor(INTERPRETER_POOL).check(own)
    Executor(INTERPRETER_POOL).check(executors.Worker)


@pytest.mark.skipif(sys.version_info >= SINCE, reason="this Python has InterpreterPoolExecutor")
def test_interpreters_need_a_newer_python(executors):
    with pytest.raises(ConfigError, match=f"executor '{INTERPRETER_POOL}' cannot be imported .*; it needs Python 3.14"):
        Server(ANYWHERE, executors.Worker, dispatcher=f"executor:{INTERPRETER_POOL}")
    with pytest.raises(ConfigError, match=r"cannot be created .*; it needs Python 3.14"):
        Server(ANYWHERE, executors.Worker, dispatcher=Executor("executors:two_interpreters")).start()


@needs_interpreters
@pytest.mark.skipif(find_spec("_testsinglephase") is None, reason="this Python lacks its own test modules")
def test_a_module_that_interpreters_cannot_import_is_named_at_the_start(tmp_path):
    (tmp_path / "single.py").write_text("import _testsinglephase\nfrom executors import Worker\nclass Single(Worker): pass\n")
    ran = program(
        """
sys.path.append(sys.argv[1])
import single
from socketkit.errors import IncompatibleError
try:
    Server(TCP("127.0.0.1", 0), single.Single, dispatcher=Executor("executors:two_interpreters")).start()
except IncompatibleError as error:
    print(error)
""",
        str(tmp_path),
    )
    reason = "ImportError: module _testsinglephase does not support loading in subinterpreters"
    assert ran.stdout == f"Executor has interpreters, which cannot run Single ({reason}); use processes\n"


@needs_interpreters
def test_interpreters_import_from_the_folder_that_a_command_serves(tmp_path, monkeypatch):
    (tmp_path / "served.py").write_text("from socketkit import MessageHandler\n" + SERVED)
    monkeypatch.chdir(tmp_path)
    with Program(*SERVE, "served:Upper", "--listen", "tcp://127.0.0.1:0", "--dispatcher", f"executor:{INTERPRETER_POOL}") as program:
        [url] = program.serving()
        assert talk(address(url), b"hello\n", 20) == b"HELLO\n"
        assert program.stop() == 0


LOGGED = """
import logging
from concurrent.futures import InterpreterPoolExecutor
from socketkit import MessageHandler
from socketkit.logs import Log

log = Log("socketkit.tests")

def configure(path):
    logging.basicConfig(filename=path, format="%(message)s")

def pool():
    return InterpreterPoolExecutor(1, initializer=configure, initargs=("log",))

class Upper(MessageHandler):
    def reply(self, message, client_address):
        print("about to answer", flush=True)
        for _ in range(5):
            log.warning("about to answer %s", message.decode())
        return message.upper()
"""
SERVE_LOGGED = (*SERVE, "logged:Upper", "--listen", "tcp://127.0.0.1:0", "--dispatcher", "executor:logged:pool")


@pytest.fixture
def logged(tmp_path, monkeypatch):
    """Go to a folder with the module `logged`, whose interpreters log to the file `log` there; return that file's path."""
    (tmp_path / "logged.py").write_text(LOGGED)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "log"


@pytest.fixture
def read_log(logged):
    """The log, as a FIFO that is open to be read."""
    os.mkfifo(logged)
    with logged.open("r+b", buffering=0) as log:
        yield log


def fill(fifo):
    with contextlib.suppress(BlockingIOError):
        writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        try:
            while True:
                os.write(writer, b"x" * 4096)
        finally:
            os.close(writer)


@needs_interpreters
def test_what_socketkit_logs_in_an_interpreter_goes_to_the_handlers_that_it_has_there(logged):
    with Program(*SERVE_LOGGED) as program:
        [url] = program.serving()
        assert talk(address(url), b"one\ntwo\n", 20) == b"ONE\nTWO\n"
        assert logged.read_text() == "about to answer one\n" * 3  # the other seven are alike, and counted
        assert program.stop() == 0
    assert logged.read_text() == "about to answer one\n" * 3
    assert program.output.splitlines()[1:] == ["about to answer"] * 2


@needs_interpreters
def test_a_drain_gives_up_a_reply_that_waits_for_a_log_handler_in_its_interpreter(logged, read_log):
    fill(logged)
    with Program(*SERVE_LOGGED, "--lifecycle", "graceful:drain=0.2") as program, contextlib.ExitStack() as stack:
        [url] = program.serving()
        client = stack.enter_context(socket.create_connection(address(url), timeout=20))
        client.sendall(b"hello\n")
        program.line("^about to answer")
        assert program.stop() == 1
    assert "abandoned requests that did not end in time" in program.output


@needs_interpreters
def test_no_log_handler_of_an_interpreter_keeps_its_pool_from_ending(logged, read_log):
    with Program(*SERVE_LOGGED) as program:
        [url] = program.serving()
        assert talk(address(url), b"hello\n", 20) == b"HELLO\n"
        assert read_log.read(4096) == b"about to answer hello\n" * 3
        fill(logged)  # nobody can be told any more that there were two more
        assert program.stop() == 0


def test_importing_it_does_not_import_multiprocessing_pools():
    python("import sys, socketkit.dispatchers.executor\nassert 'concurrent.futures.process' not in sys.modules")
