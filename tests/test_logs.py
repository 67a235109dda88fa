"""What the library logs: the first few of each kind, whole, in order, and never at the cost of who serves."""

import contextlib
import contextvars
import errno
import logging
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref

import pytest

from helpers.support import NO_DESCRIPTOR, TESTS, python
from socketkit import TCP, Graceful, Server
from socketkit._system import logs, repeats
from socketkit._system.logs import Emitter, Log
from socketkit.testing.programs import with_path

log = Log("socketkit.tests")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(logs, "_repeats", repeats.Repeats(clock))
    return clock


@pytest.fixture
def heard(caplog):
    """The messages so far."""
    caplog.set_level(logging.DEBUG, "socketkit")

    def messages():
        assert logs.flush(10)
        return caplog.messages

    return messages


@contextlib.contextmanager
def handling(handler, name="socketkit.tests"):
    """Add a handler to the logger, and keep all others from what it is told."""
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


class Blocked(logging.Handler):
    """Holds each record until it is let go, and then keeps it."""

    def __init__(self):
        super().__init__()
        self.inside, self.leave, self.messages = threading.Event(), threading.Event(), []

    def emit(self, record):
        self.inside.set()
        assert self.leave.wait(20)
        self.messages.append(record.getMessage())


class Raising(logging.Handler):
    """Raises for as long as it is told to."""

    def __init__(self, error):
        super().__init__()
        self.error, self.messages = error, []

    def emit(self, record):
        if self.error is not None:
            raise self.error
        self.messages.append(record.getMessage())


# --- the first few ----------------------------------------------------------------------------------------------------


def test_the_first_few_are_said_at_once_and_the_rest_counted(clock, heard):
    for number in range(100):
        log.warning("trouble %d", number)
    assert heard() == ["trouble 0", "trouble 1", "trouble 2"]


def test_the_next_one_after_the_window_says_how_many_were_suppressed(clock, heard):
    for number in range(100):
        log.warning("trouble %d", number)
    clock.now += repeats.WINDOW
    for number in range(100, 105):
        log.warning("trouble %d", number)
    assert heard()[3:] == ["trouble 100 (97 more like this were suppressed)", "trouble 101", "trouble 102"]


def test_whatever_is_said_after_the_window_tells_how_many_were_suppressed(clock, heard):
    for number in range(10):
        log.warning("trouble %d", number)
    clock.now += repeats.WINDOW
    log.info("something else")
    assert heard()[3:] == ["7 more like this were suppressed: trouble 0", "something else"]


def test_the_end_of_a_run_tells_how_many_were_suppressed_and_counts_anew(clock, heard):
    for number in range(10):
        log.warning("trouble %d", number)
    logs.finish()
    assert heard()[3:] == ["7 more like this were suppressed: trouble 0"]
    log.warning("trouble %d", 10)
    logs.finish()
    assert heard()[4:] == ["trouble 10"]


def test_no_flood_gets_more_than_its_lines_in_each_window(clock, heard):
    for _ in range(60):
        clock.now += 1.0
        for _ in range(10):
            log.warning("trouble", few=1)
    logs.finish()
    suppressed = [int(number) for message in heard() for number in re.findall(r"(\d+) more like this", message)]
    assert len(heard()) <= 60 / repeats.WINDOW + 1
    assert sum(suppressed) + sum(message.startswith("trouble") for message in heard()) == 600


def test_one_subject_does_not_silence_another(clock, heard):
    for _ in range(5):
        log.warning("down", about="one", few=1)
        log.warning("down", about="two", few=1)
        log.error("down", about="one", few=1)
    assert heard() == ["down"] * 3


def test_exceptions_are_alike_if_they_are_raised_at_the_same_place(clock, heard, caplog):
    def fail(divisor):
        if divisor is None:
            raise ZeroDivisionError("none")
        return 1 / divisor

    for divisor in [0, None] * 10:
        try:
            fail(divisor)
        except ZeroDivisionError:
            log.exception("failed", few=1)
    assert heard() == ["failed"] * 2
    assert ["division by zero" in record.exc_text for record in caplog.records] == [True, False]


def test_what_is_counted_is_bounded_and_no_count_is_lost(clock, heard):
    for subject in range(3 * repeats.MOST_WINDOWS):
        for _ in range(2):
            log.warning("down", about=subject, few=1)
        assert logs.flush(10)
    assert len(logs._repeats._windows) <= repeats.MOST_WINDOWS + 1
    logs.finish()
    assert heard().count("1 more like this were suppressed: down") == 3 * repeats.MOST_WINDOWS


def test_a_line_that_nobody_wants_costs_neither_text_nor_thread(caplog, monkeypatch):
    class Unshown:
        def __str__(self):
            raise AssertionError("it was made text")

    caplog.set_level(logging.INFO, "socketkit")
    monkeypatch.setattr(threading.Thread, "start", lambda _thread: pytest.fail("a thread was started"))
    monkeypatch.setattr(logs, "_repeats", None)
    for _ in range(10):
        log.debug("%s", Unshown())
    assert caplog.records == []


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_is_that_of_the_moment_the_thread_and_the_place_where_it_was_said(heard, caplog):
    before = time.time()

    def say():
        log.warning("said by %s", "say")
        log.error("said by %s", "say")

    say()
    after = time.time()
    assert heard() == ["said by say"] * 2
    for record in caplog.records:
        assert (record.funcName, record.filename, record.name) == ("say", "test_logs.py", "socketkit.tests")
        assert (record.threadName, record.process) == (threading.current_thread().name, os.getpid())
        assert before <= record.created <= after


def test_records_come_in_the_order_in_which_they_were_said(heard):
    for number in range(200):
        log.warning("line %d", number, about=number)
    assert heard() == [f"line {number}" for number in range(200)]


def test_nothing_is_lost_between_many_threads(heard):
    def say(thread):
        for number in range(25):
            log.warning("line %d of %d", number, thread, about=(number, thread))

    threads = [threading.Thread(target=say, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(heard()) == sorted(f"line {number} of {thread}" for number in range(25) for thread in range(8))


def test_a_filter_sees_the_context_in_which_the_line_was_said():
    variable, seen = contextvars.ContextVar("request", default="nobody's"), []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(variable.get())
    with handling(handler):
        variable.set("mine")
        log.warning("said in a context")
        variable.set("later")
        assert logs.flush(10)
    assert seen == ["mine"]


def test_a_traceback_is_text_at_once_and_keeps_nothing_alive():
    class Held:
        pass

    def fail():
        held = Held()
        held.me = weakref.ref(held)
        references.append(held.me)
        raise ValueError("with something in its frame")

    references = []
    with handling(Blocked()) as blocked:
        try:
            fail()
        except ValueError:
            log.exception("failed")
        assert blocked.inside.wait(10)
        assert references[0]() is None
        blocked.leave.set()
        assert logs.flush(10)
    assert blocked.messages == ["failed"]


class UnshownError(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class LeavingError(Exception):
    def __str__(self):
        raise SystemExit(3)


@pytest.mark.parametrize("kind", [UnshownError, LeavingError])
def test_an_exception_that_cannot_be_shown_is_logged_nevertheless(heard, caplog, kind):
    try:
        raise kind
    except kind as error:
        log.exception("failed: %s", error)
    log.warning("next")
    assert [re.sub(r"RuntimeError|SystemExit", "X", message) for message in heard()] == ["failed: %s (which cannot be shown: X)", "next"]
    assert kind.__name__ in caplog.records[0].exc_text


def test_a_traceback_that_python_cannot_format_shows_places_and_the_exception(heard, caplog, monkeypatch):
    def import_something(*_args):
        raise OSError(errno.EMFILE, "Too many open files", "_colorize.py")

    monkeypatch.setattr("traceback.format_exception", import_something)  # as Python 3.15 does without a free descriptor
    try:
        struct.unpack("H", b"")
    except struct.error as error:
        log.exception("failed")
        shown = str(error)
    assert heard() == ["failed"]
    first, place, last = caplog.records[0].exc_text.splitlines()
    assert first == "Traceback (most recent call last):"
    assert __file__ in place
    assert last == f"error: {shown}"


FAILS = f"""
from socketkit.socketserver import TCPServer

def fail():
    raise OSError("no use")

server = TCPServer(("127.0.0.1", 0), None)
{NO_DESCRIPTOR}
try:
    fail()
except OSError:
    server.handle_error(None, ("192.0.2.1", 50000))
"""


def test_a_classic_server_prints_an_exception_although_no_descriptor_is_left():
    printed = python(FAILS).stderr
    assert "('192.0.2.1', 50000)" in printed
    assert "in fail" in printed
    assert "OSError: no use" in printed


def test_arguments_that_do_not_fit_are_no_reason_to_fail(heard):
    log.warning("%d of %d", "one")
    log.warning("100 %")
    assert heard() == ["%d of %d (which cannot be shown: TypeError)", "100 %"]


def test_a_huge_message_and_a_huge_traceback_keep_their_ends(heard, caplog):
    try:
        raise ValueError("x" * 10_000_000 + "the end")
    except ValueError as error:
        log.exception("begin %s", error)
    [message] = heard()
    assert len(message) < 1.1 * logs.LONGEST
    assert message.startswith("begin xxx")
    assert message.endswith("xxxthe end")
    assert "characters left out" in message
    assert len(caplog.records[0].exc_text) < 1.1 * logs.LONGEST
    assert caplog.records[0].exc_text.startswith("Traceback")
    assert caplog.records[0].exc_text.endswith("the end")


def test_a_record_factory_that_raises_costs_its_line_only(heard, monkeypatch):
    def refuse(*_args, **_more):
        raise RuntimeError("no records today")

    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(refuse)
    try:
        log.warning("lost")
    finally:
        logging.setLogRecordFactory(factory)
    log.warning("found")
    assert heard() == ["found", "1 log records were lost, because log handlers failed or were too slow"]


# --- sinks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("on purpose"), SystemExit(3), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_a_handler_that_raises_loses_its_records_and_is_told_so_when_it_works(error, caplog):
    caplog.set_level(logging.WARNING, "socketkit")
    with handling(Raising(error), "socketkit") as handler:
        for number in range(5):
            log.warning("lost", about=number)
        assert logs.flush(10)
        assert logs._emitter._lost == 5
        handler.error = None
        log.warning("found")
        assert logs.flush(10)
    assert handler.messages == ["found", "5 log records were lost, because log handlers failed or were too slow"]


def test_a_blocked_handler_holds_nobody_up_and_what_is_too_much_is_counted(caplog):
    caplog.set_level(logging.WARNING, "socketkit")
    with handling(Blocked(), "socketkit") as blocked:
        log.warning("first")
        assert blocked.inside.wait(10)
        for number in range(logs.MOST_WAITING + 7):
            log.warning("line %d", number, about=number)
        blocked.leave.set()
        assert logs.flush(10)
    told = "7 log records were lost, because log handlers failed or were too slow"
    assert blocked.messages == ["first", *(f"line {number}" for number in range(logs.MOST_WAITING)), told]


def test_a_flush_waits_for_a_blocked_handler_for_a_bounded_time_and_only_once(monkeypatch):
    monkeypatch.setattr(logs, "PATIENCE", 0.3)
    with handling(Blocked()) as blocked:
        log.warning("stuck")
        began = time.monotonic()
        assert not logs.flush()
        assert 0.2 < time.monotonic() - began < 5
        began = time.monotonic()
        for _ in range(10):
            assert not logs.flush()
        assert time.monotonic() - began < 0.2
        monkeypatch.undo()
        blocked.leave.set()
        assert logs.flush(10)
    assert blocked.messages == ["stuck"]


def test_a_handler_that_stops_a_server_does_not_wait_for_itself():
    waited = []
    handler = logging.Handler()
    handler.emit = lambda record: waited.append(logs.flush(10))
    with handling(handler):
        log.warning("stop")
        assert logs.flush(10)
    assert waited == [False]


def test_no_thread_to_be_had_keeps_the_records_for_the_next_one(heard, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    log.warning("first")
    monkeypatch.undo()
    log.warning("second")
    assert heard() == ["first", "second"]


def test_the_thread_ends_when_there_is_nothing_to_say(heard):
    log.warning("something")
    assert heard() == ["something"]
    assert not any(logs.is_emitter(thread) or thread.name == "socketkit-logs" for thread in threading.enumerate())


def test_jobs_are_dropped_only_when_too_many_wait():
    emitter, leave, done = Emitter(), threading.Event(), []
    emitter.put(lambda: leave.wait(10))
    for number in range(3 * logs.MOST_WAITING):
        emitter.put(lambda number=number: done.append(number))
    leave.set()
    assert emitter.flush(10)
    assert len(done) in {logs.MOST_WAITING, logs.MOST_WAITING - 1}  # one less if the first had not begun


# --- interpreters without daemon threads ------------------------------------------------------------------------------


@pytest.fixture
def no_daemons(monkeypatch):
    monkeypatch.setattr(logs, "ALLOWS_DAEMONS", False)
    monkeypatch.setattr(logs.BackgroundThread, "start", lambda _thread: pytest.fail("a daemon thread was started"))


def test_without_daemon_threads_the_caller_hands_its_record_over(no_daemons, caplog):
    threads = []
    handler = logging.Handler()
    handler.emit = lambda record: threads.append(threading.current_thread())
    with handling(handler):
        log.warning("first")
        assert threads == [threading.current_thread()]
        assert logs.flush(0)


def test_without_daemon_threads_a_handler_that_raises_loses_its_record_and_is_told_so(no_daemons, caplog):
    caplog.set_level(logging.WARNING, "socketkit")
    with handling(Raising(ValueError("on purpose")), "socketkit") as handler:
        log.warning("lost")
        handler.error = None
        log.warning("found")
    assert handler.messages == ["found", "1 log records were lost, because log handlers failed or were too slow"]


def test_without_daemon_threads_a_handler_that_logs_does_not_wait_for_itself(no_daemons):
    messages = []

    def emit(record):
        if not messages:
            log.warning("second")
            assert not logs.flush(10)
        messages.append(record.getMessage())

    handler = logging.Handler()
    handler.emit = emit
    with handling(handler):
        log.warning("first")
    assert messages == ["first", "second"]


def test_without_daemon_threads_a_blocked_handler_holds_up_one_thread_only(no_daemons, monkeypatch):
    monkeypatch.setattr(logs, "PATIENCE", 20)
    flushed = []
    with handling(Blocked()) as blocked:
        threads = [threading.Thread(target=log.warning, args=("first",)), threading.Thread(target=lambda: flushed.append(logs.flush(20)))]
        threads[0].start()
        assert blocked.inside.wait(10)
        log.warning("second")
        threads[1].start()
        assert not logs.flush(0.1)
        blocked.leave.set()
        for thread in threads:
            thread.join()
    assert blocked.messages == ["first", "second"]
    assert flushed == [True]


# --- servers ----------------------------------------------------------------------------------------------------------

SINKS = """
import fcntl, logging, os, signal, socket, socketserver, sys, threading, time
from socketkit import Graceful, Server, TCP
from socketkit._system import logs
from socketkit import socketserver as classic
from socketkit.testing.clients import talk

def full_pipe():
    reader, writer = os.pipe()
    globals()["kept"] = reader  # it is never read, and not closed either
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    return writer

def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer

class Raising:
    def write(self, text): raise RuntimeError("on purpose")
    def flush(self): raise RuntimeError("on purpose")

def closed():
    stream = open(os.devnull, "w")
    stream.close()
    return stream

def become(sink):
    made = {
        "full": lambda: open(full_pipe(), "w", buffering=1),
        "broken": lambda: open(broken_pipe(), "w", buffering=1),
        "/dev/full": lambda: open("/dev/full", "w", buffering=1),
        "closed": closed,
        "none": lambda: None,
        "raising": Raising,
    }[sink]()
    globals()["kept_stream"] = sys.stderr = made
    if sink != "none":
        logging.basicConfig(stream=made, level=logging.DEBUG)
        logging.getLogger("asyncio").setLevel(logging.WARNING)  # it speaks while its loop is made, in this thread

def handle(request, peer, server):
    data = request.recv(100)
    if data == b"bad":
        raise ValueError("on purpose, " + "with much to say " * 1000)
    request.sendall(data.upper())

def check(address):
    for number in range(30):
        try:
            assert talk(address, b"bad") == b""
        except ConnectionError:  # it was closed with the end of the data still unread
            pass
        assert talk(address, b"good") == b"GOOD"
    print("answered", flush=True)
"""

COMPOSED = """
become(sys.argv[1])
server = Server(TCP("127.0.0.1", 0), handle, dispatcher=sys.argv[2], lifecycle=Graceful(5))
with server:
    address = server.addresses[0]
    client = threading.Thread(target=lambda: (check(address), server.stop()))
    client.start()
    server.serve_forever()
client.join()
assert server.stats().outcomes["finished"] == 30, server.stats()
assert server.stats().outcomes["failed"] == 30, server.stats()
print("over")
"""

CLASSIC = """
become(sys.argv[1])
class Handler(classic.BaseRequestHandler):
    def handle(self):
        handle(self.request, self.client_address, self.server)
with getattr(classic, sys.argv[2])(("127.0.0.1", 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    check(server.server_address)
    server.shutdown()
    thread.join()
print("over")
"""

BAD_SINKS = ("full", "broken", "/dev/full", "closed", "none", "raising")

USUAL_EXIT = {0, 120}  # 120: the interpreter could not flush a standard stream, as it says for every program


def served_in_spite_of(program, *arguments):
    command = [sys.executable, "-c", f"import faulthandler as _f; _f.dump_traceback_later(40, exit=True)\n{SINKS}{program}", *arguments]
    ended = subprocess.run(command, env=with_path(TESTS), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False)
    assert ended.stdout == "answered\nover\n", ended
    assert ended.returncode in USUAL_EXIT, ended


@pytest.mark.parametrize("sink", BAD_SINKS)
@pytest.mark.parametrize("dispatcher", ["sync", "thread", "fork", "pool:4", "adaptive", "asyncio", "prefork:2/sync"])
def test_no_sink_keeps_a_composed_server_from_answering_and_its_program_from_ending(dispatcher, sink):
    served_in_spite_of(COMPOSED, sink, dispatcher)


@pytest.mark.parametrize("sink", BAD_SINKS)
@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer"])
def test_no_sink_keeps_a_classic_server_from_answering_and_its_program_from_ending(kind, sink):
    served_in_spite_of(CLASSIC, sink, kind)


@pytest.mark.parametrize("sink", ["handler", "last resort", "standard output", "printed", "behind a buffer"])
def test_a_program_ends_although_nobody_reads_its_standard_error(sink):
    source = """
import logging, logging.handlers, sys
from socketkit._system import logs
log = logs.Log("socketkit.tests")
sink = sys.argv[1]
if sink == "handler":
    logging.basicConfig()
elif sink == "behind a buffer":
    logging.basicConfig()
    logging.getLogger("app").propagate = False
    logging.getLogger("app").addHandler(logging.handlers.MemoryHandler(10, target=logging.root.handlers[0]))
    logging.getLogger("app").warning("waits in the buffer, which is flushed at the end")
elif sink == "standard output":
    logging.basicConfig(stream=sys.stdout)
elif sink == "printed":
    logs.write(sys.stderr, "x" * 10_000_000)
for number in range(3):
    log.warning("%s", "x" * 10_000_000, about=number)
for number in range(200):
    log.warning("%s", "y" * 10_000, about=number)
"""
    reader, writer = os.pipe()
    try:
        options = {"stdout": writer, "stderr": writer, "env": with_path(TESTS), "stdin": subprocess.DEVNULL}
        began = time.monotonic()
        assert subprocess.run([sys.executable, "-c", source, sink], **options, timeout=30, check=False).returncode == 0
        assert time.monotonic() - began < 15
    finally:
        os.close(reader)
        os.close(writer)


def test_at_exit_a_blocked_sink_keeps_no_other_handler_from_what_it_was_to_write(tmp_path):
    source = """
import atexit, logging, logging.handlers, sys
program = logging.getLogger("program")
program.propagate = False
program.addHandler(logging.handlers.MemoryHandler(100, flushLevel=logging.CRITICAL, target=logging.FileHandler(sys.argv[1])))
atexit.register(program.error, "at the very end")  # called after that of socketkit
from socketkit._system import logs
logging.basicConfig()
for number in range(100):
    logs.Log("socketkit.tests").warning("%s", "x" * 10_000, about=number)
program.error("before")
"""
    reader, writer = os.pipe()
    try:
        options = {"stderr": writer, "env": with_path(TESTS), "stdin": subprocess.DEVNULL}
        assert subprocess.run([sys.executable, "-c", source, tmp_path / "log"], **options, timeout=30, check=False).returncode == 0
    finally:
        os.close(reader)
        os.close(writer)
    assert (tmp_path / "log").read_text().splitlines() == ["before", "at the very end"]


def test_what_a_program_logs_last_is_written_before_it_ends():
    done = python(
        """
import atexit, logging, sys
from socketkit import Graceful, Server, TCP
from socketkit._system import logs
log = logs.Log("socketkit.tests")
logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, format="%(message)s")
atexit.register(lambda: log.warning("at the very end"))
for number in range(10):
    log.warning("line %d", number)
"""
    )
    assert done.stdout.splitlines() == [
        "line 0",
        "line 1",
        "line 2",
        "at the very end",
        "7 more like this were suppressed: line 0",
    ]


def test_a_child_forked_while_the_handlers_lock_is_held_logs_and_answers():
    done = python(
        """
import logging, os, sys, threading
from socketkit._system import logs
log = logs.Log("socketkit.tests")
inside, leave = threading.Event(), threading.Event()
parent = os.getpid()

class Blocked(logging.StreamHandler):
    def emit(self, record):
        if os.getpid() == parent:
            inside.set()
            leave.wait(20)
        super().emit(record)

logging.basicConfig(handlers=[Blocked(sys.stdout)], format="%(process)d %(message)s")
log.warning("parent's, in work")
log.warning("parent's, waiting")
assert inside.wait(10)
for number in range(20):
    pid = os.fork()
    if pid == 0:
        log.warning("child %d", number)
        log.warning("child %d", number)
        flushed = logs.flush(10)
        os._exit(0 if flushed and threading.active_count() == 1 else 1)
    assert os.waitpid(pid, 0)[1] == 0
leave.set()
assert logs.flush(10)
""",
        "-W",
        "ignore",
    )
    lines = [line.partition(" ")[2] for line in done.stdout.splitlines()]
    assert lines[:40] == [f"child {number}" for number in range(20) for _ in range(2)]
    assert lines[40:] == ["parent's, in work", "parent's, waiting"]


@pytest.mark.parametrize("dispatcher", ["fork", "prefork:2,max_requests=5/sync"])
def test_forked_processes_answer_while_their_parent_logs_all_the_time(dispatcher):
    done = python(
        """
import logging, os, sys, threading, warnings
warnings.simplefilter("ignore")
from socketkit import Graceful, Server, TCP
from socketkit._system import logs
from socketkit.testing.clients import talk
class Sink(logging.Handler):  # no stream, whose own lock would not outlive the fork
    def emit(self, record):
        os.write(nowhere, self.format(record).encode())

nowhere = os.open(os.devnull, os.O_WRONLY)
logging.basicConfig(handlers=[Sink()], level=logging.DEBUG)
log, over = logs.Log("socketkit.tests"), threading.Event()

def chat():
    number = 0
    while not over.is_set():
        number += 1
        log.warning("line", about=number)
        logging.warning("a plain one")

def handle(request, peer, server):
    log.warning("handled")
    logging.warning("a plain one")
    request.sendall(request.recv(10).upper())

chatting = threading.Thread(target=chat)
chatting.start()
try:
    server = Server(TCP("127.0.0.1", 0), handle, dispatcher=sys.argv[1], lifecycle=Graceful(5))
    with server:
        address = server.addresses[0]
        def ask():
            try:
                for _ in range(100):
                    assert talk(address, b"good") == b"GOOD"
            finally:
                server.stop()
        client = threading.Thread(target=ask)
        client.start()
        server.serve_forever()
        client.join()
finally:
    over.set()
    chatting.join()
print(server.stats().outcomes)
""",
        dispatcher,
    )
    assert done.stdout == "{'finished': 100}\n"


def test_ten_thousand_resets_are_ten_lines_at_most_and_all_are_counted(caplog):
    def read(request, client_address, server):
        request.sendall(request.recv(4))

    resets = 10_000
    caplog.set_level(logging.DEBUG, "socketkit.server")
    with Server(TCP("127.0.0.1", 0), read, lifecycle=Graceful(10)).start() as server:
        for number in range(resets):
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.connect(server.addresses[0])
            if number % 200 == 199:  # the kernel's queue does not overflow, and is empty in the end
                with socket.create_connection(server.addresses[0], timeout=10) as client:
                    client.sendall(b"next")
                    assert client.recv(4) == b"next"
        server.stop()
    aborted = server.stats().outcomes["aborted"]
    assert server.stats().accepted == resets + resets // 200
    assert aborted > 0.9 * resets  # to some handlers a reset looks like an end
    assert len(caplog.records) <= 10
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    suppressed = sum(int(number) for message in caplog.messages for number in re.findall(r"(\d+) more like this", message))
    assert suppressed + sum(message.startswith("request from") for message in caplog.messages) == aborted


def test_a_stop_with_a_blocked_handler_takes_its_patience_and_no_longer(monkeypatch):
    monkeypatch.setattr(logs, "PATIENCE", 0.3)

    def fail(request, client_address, server):
        raise ValueError("on purpose")

    with handling(Blocked(), "socketkit.server") as blocked:
        server = Server(TCP("127.0.0.1", 0), fail).start()
        with socket.create_connection(server.addresses[0], timeout=10) as client:
            client.sendall(b"x")
            with contextlib.suppress(ConnectionError):
                assert client.recv(1) == b""
        assert blocked.inside.wait(10)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 5
        monkeypatch.undo()
        blocked.leave.set()
        assert logs.flush(10)


SAYS = """
from socketkit._system.logs import Log, finish

log = Log("socketkit.test")

def fail():
    raise OSError("no use")

log.info("nobody asks for this")
log.warning("refused %s", "192.0.2.1")
for _ in range(5):
    log.error("again")
try:
    fail()
except OSError:
    log.exception("failed")
finish()
"""


def test_a_program_without_logging_sees_the_lines_that_logging_would_write():
    plain = python("import sys\n" + SAYS + "assert 'logging' not in sys.modules\n")
    assert plain.stderr == python("import logging\n" + SAYS).stderr != ""
    assert "2 more like this were suppressed: again" in plain.stderr


def test_lines_go_to_a_logging_that_the_program_imports_later():
    printed = python(
        SAYS
        + """
import logging, sys
logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, format="%(levelname)s %(name)s %(funcName)s %(message)s")

def say():
    log.info("heard")

say()
finish()
"""
    )
    assert printed.stdout == "INFO socketkit.test say heard\n"


def test_the_last_lines_are_written_before_a_logging_that_came_later_shuts_down(tmp_path):
    file = tmp_path / "log"
    python(
        f"""
from socketkit._system.logs import Log
import logging, logging.handlers, threading

class AtTheEnd(logging.handlers.MemoryHandler):
    def emit(self, record):
        threading.main_thread().join(10)
        super().emit(record)

logging.getLogger().addHandler(AtTheEnd(100, flushLevel=logging.CRITICAL, target=logging.FileHandler({str(file)!r})))
Log("socketkit.test").warning("the last one")
"""
    )
    assert file.read_text() == "the last one\n"
