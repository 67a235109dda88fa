"""Handlers in an event loop: asynchronous ones as tasks, blocking ones in a bounded pool of threads."""

import asyncio
import contextlib
import contextvars
import errno
import functools
import importlib.util
import queue
import signal
import socket
import threading
import time
from typing import ClassVar

import attrs
import pytest

from helpers.support import TESTS, python
from socketkit import TCP, UDP, Classic, Graceful, Layered, Limits, Prefork, ProxyProtocol, Server, UnixDatagram, socketserver
from socketkit._engine import coroutines
from socketkit._engine.override import Override
from socketkit._system import logs
from socketkit.dispatchers import aio
from socketkit.dispatchers._aio import EventLoop, new_loop
from socketkit.dispatchers._workers import ConcurrencyLimit, WorkerThreads
from socketkit.dispatchers.aio import Asyncio
from socketkit.errors import ConfigError, IncompatibleError
from socketkit.handlers.base import StreamRequestHandler
from socketkit.handlers.conversation import ConversationHandler
from socketkit.handlers.coroutines import AsyncDatagramRequestHandler, AsyncRequestHandler, AsyncStreamRequestHandler
from socketkit.testing import Account
from socketkit.testing.clients import ask, talk
from socketkit.testing.programs import GUARD, Program, with_path

ANYWHERE = TCP("127.0.0.1", 0)
LOOPS = [
    "asyncio",
    pytest.param("uvloop", marks=pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")),
]

if importlib.util.find_spec("uvloop") is not None:
    new_loop("uvloop").close()  # the first one opens a pipe for all the process


@pytest.fixture(params=LOOPS)
def dispatcher(request):
    return Asyncio(request.param)


class Upper(AsyncStreamRequestHandler):
    async def handle(self):
        while line := await self.reader.readline():
            self.writer.write(line.upper())
            await self.writer.drain()


class StreamUpper(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class UpperDatagram(AsyncDatagramRequestHandler):
    async def handle(self):
        await self.reply(self.packet.upper())


def asynchronous(handle, base=AsyncStreamRequestHandler, **attributes):
    """Return a handler class with this `handle`."""
    return type("Handler", (base,), {"handle": handle, **attributes})


class Recording(Server):
    """A server that notes what happens to its requests, and in which thread."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.events, self.errors, self.loop_threads = [], queue.SimpleQueue(), set()

    def note(self, event):
        self.events.append(event)
        self.loop_threads.add(threading.get_ident())

    def verify_request(self, request, client_address):
        self.note("verify")
        return super().verify_request(request, client_address)

    def shutdown_request(self, request):
        self.note("shutdown")
        if not isinstance(request, tuple):
            assert request.getsockname()  # it is open
        super().shutdown_request(request)

    def close_request(self, request):
        self.note("close")
        super().close_request(request)

    def handle_error(self, request, client_address):
        import sys

        self.note("error")
        self.errors.put(sys.exc_info()[1])


def connect(server):
    return socket.create_connection(server.addresses[0], timeout=GUARD)


def draining(server):
    """Wait until the server no longer takes requests."""
    deadline = time.monotonic() + GUARD
    while server.state.value == "running":
        assert time.monotonic() < deadline
        time.sleep(0.001)


def ended(client):
    """Return what still comes, up to the end."""
    return b"".join(iter(lambda: client.recv(65536), b""))


# --- requests ---------------------------------------------------------------------------------------------------------


def test_connections_are_served_at_once_in_the_thread_that_serves(dispatcher):
    threads = set()

    async def handle(self):
        threads.add(threading.current_thread().name)
        await Upper.handle(self)

    with Server(ANYWHERE, asynchronous(handle), dispatcher=dispatcher).start() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(20)]
        for client in clients:  # each has an open conversation while all others do
            client.sendall(b"hello\n")
        assert [client.recv(100) for client in clients] == [b"HELLO\n"] * 20
        for client in clients:
            client.sendall(b"more\n")
            client.shutdown(socket.SHUT_WR)
        assert [ended(client) for client in clients] == [b"MORE\n"] * 20
    assert server.stats().outcomes == {"finished": 20}
    assert threads == {"socketkit-serve"}


def test_five_hundred_connections_wait_in_one_thread(dispatcher):
    together = []

    async def handle(self):
        await self.reader.readexactly(1)
        together.append(len(asyncio.all_tasks()))
        await self.reader.readexactly(1)
        self.writer.write(b"!")

    with Server(ANYWHERE, asynchronous(handle), dispatcher=dispatcher) as server, contextlib.ExitStack() as stack:
        server.start()
        before = threading.active_count()
        clients = [stack.enter_context(connect(server)) for _ in range(500)]
        for client in clients:
            client.sendall(b"a")
        for client in clients:
            client.sendall(b"b")
            assert client.recv(1) == b"!"
        assert threading.active_count() <= before + 2  # the watchdog, and who keeps the time
        assert server.stats().accepted == 500
    assert max(together) > 250
    assert server.stats().outcomes == {"finished": 500}


def test_datagrams_are_answered(dispatcher):
    with Server(UDP("127.0.0.1", 0), UpperDatagram, dispatcher=dispatcher).start() as server:
        for text in (b"one", b"", b"x" * 60000):
            assert ask(server.addresses[0], text) == text.upper()
        assert server.stop().stuck == ()
    assert server.stats().outcomes == {"finished": 3}


def test_a_datagram_may_have_several_replies_or_none():
    async def handle(self):
        for number in range(self.packet[0]):
            await self.reply(bytes([number]))

    with Server(UDP("127.0.0.1", 0), asynchronous(handle, AsyncDatagramRequestHandler), dispatcher=Asyncio()).start() as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect(server.addresses[0])
            client.send(b"\0")
            client.send(b"\3")
            assert [client.recv(10) for _ in range(3)] == [b"\0", b"\1", b"\2"]
    assert server.stats().outcomes == {"finished": 2}


def test_a_reply_waits_for_a_receiver_whose_queue_is_full(tmp_path, dispatcher):
    done = threading.Event()

    async def handle(self):
        for number in range(600):
            await self.reply(str(number).encode())
        done.set()

    handler = asynchronous(handle, AsyncDatagramRequestHandler)
    with Server(UnixDatagram(str(tmp_path / "server")), handler, dispatcher=dispatcher).start():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.bind(str(tmp_path / "client"))
            client.sendto(b"go", str(tmp_path / "server"))
            began = time.process_time()
            assert not done.wait(0.3)  # its queue holds fewer
            assert time.process_time() - began < 0.15  # and nobody spins
            assert [client.recv(10) for _ in range(600)] == [str(number).encode() for number in range(600)]
            assert done.wait(10)


def test_a_sender_without_an_address_gets_no_reply(tmp_path):
    with Recording(UnixDatagram(str(tmp_path / "server")), UpperDatagram, dispatcher=Asyncio()).start() as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"go", str(tmp_path / "server"))
            assert server.errors.get(timeout=10).errno == errno.EDESTADDRREQ
    assert server.stats().outcomes == {"failed": 1}


def test_a_handler_may_be_wrapped_in_a_partial():
    class Greeting(AsyncStreamRequestHandler):
        def __init__(self, *arguments, greeting):
            self.greeting = greeting
            super().__init__(*arguments)

        async def handle(self):
            self.writer.write(self.greeting)

    with Server(ANYWHERE, functools.partial(Greeting, greeting=b"hello"), dispatcher=Asyncio()).start() as server:
        assert talk(server.addresses[0], b"") == b"hello"


def test_finish_request_may_be_overridden():
    class Greeting(AsyncStreamRequestHandler):
        async def handle(self):
            self.writer.write(self.greeting)

    class Greeter(Server):
        def finish_request(self, request, client_address):
            handler = self.RequestHandlerClass(request, client_address, self)
            handler.greeting = b"hello"

    with Greeter(ANYWHERE, Greeting, dispatcher=Asyncio()).start() as server:
        assert talk(server.addresses[0], b"") == b"hello"


def test_each_request_has_a_context_of_its_own(dispatcher):
    name = contextvars.ContextVar("name", default="nobody")

    async def handle(self):
        before = name.get()
        name.set((await self.reader.readline()).decode())
        self.writer.write(b"first\n")
        await self.reader.read()
        self.writer.write(f"{before} {name.get()}".encode())

    with Server(ANYWHERE, asynchronous(handle), dispatcher=dispatcher).start() as server:
        with connect(server) as one, connect(server) as other:
            for client, text in ((one, b"one\n"), (other, b"other\n")):
                client.sendall(text)
                assert client.recv(100) == b"first\n"
            for client, text in ((one, b"nobody one\n"), (other, b"nobody other\n")):
                client.shutdown(socket.SHUT_WR)
                assert ended(client) == text


def test_a_single_request_is_served_without_a_loop_that_goes_on(dispatcher):
    with Server(ANYWHERE, Upper, dispatcher=dispatcher) as server, connect(server) as client:
        client.sendall(b"hello\n")
        client.shutdown(socket.SHUT_WR)
        server.handle_request()
        assert ended(client) == b"HELLO\n"
    assert server.stats().outcomes == {"finished": 1}


def test_it_serves_again_after_it_was_stopped(dispatcher):
    server = Server(ANYWHERE, Upper, dispatcher=dispatcher)
    for _ in range(3):
        with server.start():
            assert talk(server.addresses[0], b"a\n") == b"A\n"
    classic = Server(ANYWHERE, Upper, dispatcher=dispatcher, lifecycle=Classic())
    with classic:
        for _ in range(3):
            classic.start()
            assert talk(classic.addresses[0], b"a\n") == b"A\n"
            classic.shutdown()
    assert server.stats().outcomes == classic.stats().outcomes == {"finished": 3}


# --- a request's life -------------------------------------------------------------------------------------------------


def test_a_request_goes_through_the_hooks_in_order_in_the_loops_thread(dispatcher):
    class Telling(AsyncStreamRequestHandler):
        async def setup(self):
            await super().setup()
            self.server.note("setup")

        async def handle(self):
            self.server.note("handle")

        async def finish(self):
            await super().finish()
            self.server.note("finish")

    with Recording(ANYWHERE, Telling, dispatcher=dispatcher).start() as server:
        assert talk(server.addresses[0], b"") == b""
    assert server.events == ["verify", "setup", "handle", "finish", "shutdown", "close"]
    assert len(server.loop_threads) == 1


def test_a_request_that_does_not_verify_is_refused(dispatcher):
    class Strict(Recording):
        def verify_request(self, request, client_address):
            return False

    with Strict(ANYWHERE, Upper, dispatcher=dispatcher).start() as server:
        assert talk(server.addresses[0], b"") == b""
    assert server.stats().outcomes == {"refused": 1}
    assert server.events == ["shutdown", "close"]


def raising(step, error, finished):
    """Return a handler that answers what it reads, or raises in one of its steps."""

    class Stumbling(AsyncStreamRequestHandler):
        async def setup(self):
            await super().setup()
            self.data = await self.reader.read()
            self.stumble("setup")

        async def handle(self):
            self.stumble("handle")
            self.writer.write(self.data)

        async def finish(self):
            await super().finish()
            finished.append(step)
            self.stumble("finish")

        def stumble(self, where):
            if self.data == b"bad" and where == step:
                raise error

    return Stumbling


@pytest.mark.parametrize(
    ("error", "outcome", "is_told"),
    [
        (ZeroDivisionError(), "failed", True),
        (ConnectionResetError(), "aborted", True),
        (SystemExit(), "failed", False),
        (GeneratorExit(), "failed", False),
        (asyncio.CancelledError(), "failed", False),
        (KeyboardInterrupt(), "failed", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
@pytest.mark.parametrize("step", ["setup", "handle", "finish"])
def test_what_a_handler_raises_ends_only_its_request(  # noqa: PLR0913, PLR0917 - one place for all ways to fail
    dispatcher, step, error, outcome, is_told, caplog
):
    finished = []
    with Recording(ANYWHERE, raising(step, error, finished), dispatcher=dispatcher).start() as server:
        for _ in range(3):
            assert talk(server.addresses[0], b"bad") == (b"bad" if step == "finish" else b"")
            assert talk(server.addresses[0], b"good") == b"good"
        assert not server.stop().stuck
    assert server.stats().outcomes == {outcome: 3, "finished": 3}
    assert len(finished) == (3 if step == "setup" else 6)
    assert server.events.count("close") == 6
    assert server.events.count("error") == (3 if is_told else 0)
    if is_told:
        assert server.errors.get(timeout=0) is error
    else:
        assert f"a handler raised {type(error).__name__}" in caplog.text


def test_an_error_goes_to_handle_error_of_the_server_with_its_traceback(caplog):
    async def handle(self):
        raise ZeroDivisionError("of this request")

    with Server(ANYWHERE, asynchronous(handle), dispatcher=Asyncio()).start() as server:
        assert talk(server.addresses[0], b"") == b""
        server.stop()
    assert "of this request" in caplog.text
    assert "in handle" in caplog.text


def test_a_server_whose_hooks_keep_the_socket_keeps_it(dispatcher):
    class Keeping(Server):
        kept = None

        def shutdown_request(self, request):
            self.kept = request

    with Keeping(ANYWHERE, Upper, dispatcher=dispatcher).start() as server, connect(server) as client:
        client.sendall(b"hello\n")
        assert client.recv(100) == b"HELLO\n"
        client.shutdown(socket.SHUT_WR)
        server.stop()
        server.kept.setblocking(True)
        server.kept.sendall(b"still here")
        server.kept.close()
        assert ended(client) == b"still here"


def test_a_connection_takes_one_descriptor():
    with Server(ANYWHERE, Upper, dispatcher=Asyncio()).start() as server, contextlib.ExitStack() as stack:
        held = []
        for _ in range(10):
            client = stack.enter_context(connect(server))
            client.sendall(b"a\n")
            assert client.recv(10) == b"A\n"
            held.append(len(Account.take().descriptors))
        assert [count - held[0] for count in held] == list(range(0, 20, 2))


def test_layers_come_first_and_do_not_hold_the_loop(dispatcher):
    inside, leave = threading.Event(), threading.Event()

    @attrs.frozen
    class Slow:
        def wrap(self, request, client_address):
            first = request.recv(1)
            if first == b"x":
                raise ValueError("not for us")
            if first == b"s":
                inside.set()
                leave.wait(10)
            return request, (first.decode(), 1)

    async def handle(self):
        self.writer.write(repr(self.client_address).encode())

    handler = asynchronous(handle)
    with Server(Layered(ANYWHERE, Slow()), handler, dispatcher=dispatcher).start() as server, connect(server) as slow:
        slow.sendall(b"s")
        assert inside.wait(10)
        assert talk(server.addresses[0], b"x") == b""
        assert talk(server.addresses[0], b"q") == b"('q', 1)"
        leave.set()
        assert ended(slow) == b"('s', 1)"
    assert server.stats().outcomes == {"finished": 2, "failed": 1}


def test_a_request_forced_while_a_layer_has_it_ends_after_the_layer():
    inside, leave = threading.Event(), threading.Event()

    @attrs.frozen
    class Stubborn:
        def wrap(self, request, client_address):
            inside.set()
            leave.wait(10)
            return request, client_address

    with Server(Layered(ANYWHERE, Stubborn()), Upper, dispatcher=Asyncio()).start() as server, connect(server) as client:
        assert inside.wait(10)
        timer = threading.Timer(0.2, leave.set)
        timer.start()
        report = server.stop(drain=0.05)
        timer.join()
        assert (report.forced, report.stuck) == (1, ())
        assert ended(client) == b""
    assert server.stats().outcomes == {"failed": 1}


# --- the end of a reply -----------------------------------------------------------------------------------------------


def test_what_was_written_last_reaches_a_slow_reader(dispatcher):
    async def handle(self):
        self.writer.write(b"x" * 5_000_000)

    with Server(ANYWHERE, asynchronous(handle), dispatcher=dispatcher).start() as server, connect(server) as client:
        assert client.recv(1) == b"x"
        assert talk(server.addresses[0], b"")[:1] == b"x"  # the slow one keeps nobody waiting
        assert len(ended(client)) == 5_000_000 - 1
    assert server.stats().outcomes == {"finished": 2}


def test_a_client_gets_the_rest_as_long_as_it_reads(dispatcher):
    async def handle(self):
        self.writer.write(b"x" * 20_000_000)

    with Server(ANYWHERE, asynchronous(handle, flush_timeout=0.5), dispatcher=dispatcher).start() as server:
        with socket.socket() as client:
            client.settimeout(10)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.connect(server.addresses[0])
            left, begun = 20_000_000, time.monotonic()
            while left:
                left -= len(client.recv(400_000, socket.MSG_WAITALL if left > 400_000 else 0))
                time.sleep(0.02)  # a slow reader: the whole takes longer than `flush_timeout`
            assert client.recv(1) == b""
            assert time.monotonic() - begun > 0.5
    assert server.stats().outcomes == {"finished": 1}


@pytest.mark.parametrize("waits", [False, True], ids=["at the end", "in drain"])
def test_a_reply_that_is_cut_off_does_not_look_complete(dispatcher, waits):
    async def handle(self):
        self.writer.write(b"x" * 50_000_000)
        if waits:
            await self.writer.drain()

    limits = Limits(write_stall=0.2)
    kind = asynchronous(handle, flush_timeout=0.2)
    with Recording(ANYWHERE, kind, dispatcher=dispatcher, limits=limits).start() as server, connect(server) as client:
        error = server.errors.get(timeout=10)
        assert isinstance(error, TimeoutError)
        if not waits:
            assert "has read nothing of the rest of the reply for 0.2 s" in str(error)
        with pytest.raises(ConnectionResetError):
            ended(client)
    assert server.stats().outcomes == {"timed out" if waits else "failed": 1}


def test_a_peer_that_is_gone_at_the_end_is_no_error(dispatcher):
    async def handle(self):
        self.writer.write(b"x" * 5_000_000)
        await self.reader.read()

    with Server(ANYWHERE, asynchronous(handle), dispatcher=dispatcher).start() as server:
        with connect(server) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            assert client.recv(1) == b"x"
        assert not server.stop().forced
    assert server.stats().outcomes.keys() <= {"finished", "aborted"}


def test_a_reader_takes_no_more_than_its_limit(dispatcher):
    async def handle(self):
        with contextlib.suppress(ValueError):
            await self.reader.readline()
            return
        self.writer.write(b"too long")
        while await self.reader.read(65536):
            pass

    with Server(ANYWHERE, asynchronous(handle), dispatcher=dispatcher).start() as server:
        assert talk(server.addresses[0], b"x" * 65535 + b"\n") == b""
        assert talk(server.addresses[0], b"x" * 65537 + b"\n") == b"too long"


# --- logging ----------------------------------------------------------------------------------------------------------


def test_a_log_handler_may_wait_for_the_server_while_it_starts():
    source = """
import logging, socket, threading
from socketkit import TCP, Server, StreamRequestHandler
from socketkit.dispatchers.aio import Asyncio

class Upper(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

sent = threading.Event()

class Sends(logging.Handler):
    def emit(self, record):  # called with the handler's lock
        with socket.create_connection(server.addresses[0]) as client:
            client.sendall(b"word\\n")
            sent.set()
            assert client.recv(100) == b"WORD\\n"

with Server(TCP("127.0.0.1", 0), Upper, dispatcher=Asyncio()) as server:
    logging.basicConfig(level=logging.DEBUG, handlers=[Sends()])
    logs = threading.Thread(target=logging.info, args=("hello",))
    logs.start()
    sent.wait()
    server.start()
    logs.join()
    logging.getLogger().handlers.clear()
    print("answered")
"""
    assert python(source, guard=15).stdout == "answered\n"


# --- stopping ---------------------------------------------------------------------------------------------------------


async def hold(self):
    self.writer.write(b"!")
    try:
        await asyncio.Event().wait()
    finally:
        self.server.note("let go")


def test_a_drain_lets_tasks_finish(dispatcher):
    async def handle(self):
        self.writer.write(b"!")
        self.writer.write(await self.reader.read())

    with Server(ANYWHERE, asynchronous(handle), dispatcher=dispatcher).start() as server, connect(server) as client:
        assert client.recv(1) == b"!"
        server.stop(wait=False)
        draining(server)
        with pytest.raises(ConnectionRefusedError):
            talk(server.addresses[0] if server.addresses else client.getpeername(), b"")
        client.sendall(b"late")
        client.shutdown(socket.SHUT_WR)
        assert ended(client) == b"late"
        report = server.stop()
        assert report is None or (report.finished, report.forced, report.stuck) == (1, 0, ())
    assert server.stats().outcomes == {"finished": 1}


def test_tasks_are_cancelled_at_the_deadline(dispatcher, caplog):
    handler = asynchronous(hold)
    with Recording(ANYWHERE, handler, dispatcher=dispatcher).start() as server, connect(server) as client:
        assert client.recv(1) == b"!"
        report = server.stop(drain=0.1)
        assert (report.finished, report.forced, report.stuck) == (0, 1, ())
        assert ended(client) == b""
    assert server.events == ["verify", "let go", "shutdown", "close"]
    assert server.stats().outcomes == {"failed": 1}
    assert "raised" not in caplog.text


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # its streams are never closed
def test_a_task_that_will_not_be_cancelled_is_stuck_and_the_server_still_ends():
    async def handle(self):
        self.writer.write(b"!")
        while self.server.state.value != "stopped":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    with Server(ANYWHERE, asynchronous(handle), dispatcher=Asyncio()).start() as server, connect(server) as client:
        assert client.recv(1) == b"!"
        report = server.stop(drain=0)
        assert [each.peer for each in report.stuck] == [client.getsockname()]


def test_a_handler_may_stop_its_server(dispatcher):
    async def handle(self):
        assert self.server.stop() is None
        self.writer.write(b"good bye")

    with Server(ANYWHERE, asynchronous(handle), dispatcher=dispatcher).start() as server:
        assert talk(server.addresses[0], b"") == b"good bye"
        server.stop()
    assert server.stats().outcomes == {"finished": 1}


@pytest.mark.parametrize("lifecycle", [Graceful(5), Classic()], ids=lambda each: type(each).__name__)
def test_a_handler_may_close_its_server(dispatcher, lifecycle):
    async def handle(self):
        self.server.server_close()
        await asyncio.sleep(0.01)
        self.writer.write(b"good bye")

    server = Server(ANYWHERE, asynchronous(handle), dispatcher=dispatcher, lifecycle=lifecycle).start()
    with connect(server) as client:
        draining(server)
        server.server_close()  # a classic lifecycle leaves what still runs to whoever closes the server
        assert ended(client) == b"good bye"
    assert server.stats().outcomes == {"finished": 1}


@pytest.mark.parametrize("lifecycle", [Graceful(5), Classic()], ids=lambda each: type(each).__name__)
def test_a_blocking_handler_may_close_its_server(dispatcher, lifecycle):
    def handle(request, client_address, server):
        server.server_close()
        request.sendall(b"good bye")

    server = Server(ANYWHERE, handle, dispatcher=dispatcher, lifecycle=lifecycle).start()
    with connect(server) as client:
        assert ended(client) == b"good bye"
        draining(server)
        server.server_close()
    assert server.stats().outcomes == {"finished": 1}


SIGNALLED = """
import asyncio, signal, sys
from socketkit import Server, TCP, Graceful
from socketkit._engine.override import Override
from socketkit.handlers.coroutines import AsyncStreamRequestHandler
from socketkit.dispatchers.aio import Asyncio

class Held(AsyncStreamRequestHandler):
    async def handle(self):
        self.writer.write(b"!")
        if await self.reader.read() == b"wait":
            await asyncio.Event().wait()
        self.writer.write(b"bye")

server = Server(TCP("127.0.0.1", 0), Held, dispatcher=Asyncio(sys.argv[1]), lifecycle=Graceful(20))
with server:
    print("serving", server.addresses[0][1], flush=True)
    server.serve_forever()
print("outcomes", dict(server.stats().outcomes), flush=True)
"""


def greeted(program):
    """Return a client that the program is serving: so its loop runs, and its signal handlers are there."""
    [found] = program.line(r"serving (\d+)")
    client = socket.create_connection(("127.0.0.1", int(found[1])), timeout=10)
    assert client.recv(1) == b"!"
    return client


@pytest.mark.parametrize("loop", LOOPS)
def test_a_signal_stops_it_at_once_although_the_loop_waits(loop):
    with Program.python("-c", SIGNALLED, loop, env=with_path(TESTS)) as program:
        with greeted(program) as client:
            client.close()
            began = time.monotonic()
            assert program.stop(signal.SIGTERM) == 0
            assert time.monotonic() - began < 5
        program.line(r"outcomes \{'finished': 1\}")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_signal_that_another_thread_gets_stops_it_at_once(loop):
    source = SIGNALLED.replace(
        "    server.serve_forever()",
        """
    import socket, threading, time
    def signal_this_thread():
        with socket.create_connection(server.addresses[0]) as client:
            client.recv(1)
        time.sleep(0.2)  # the main thread is in a system call, and will not be interrupted
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        time.sleep(0.5)
    threading.Thread(target=signal_this_thread, daemon=True).start()
    server.serve_forever()""",
    )
    assert "outcomes {'finished': 1}" in python(source, loop, guard=10).stdout


@pytest.mark.parametrize("loop", LOOPS)
def test_a_first_signal_drains_and_a_second_forces(loop):
    with Program.python("-c", SIGNALLED, loop, env=with_path(TESTS)) as program:
        with greeted(program) as one, greeted(program) as other:
            program.send_signal(signal.SIGTERM)
            for client, text in ((other, b"wait"), (one, b"")):
                client.sendall(text)
                client.shutdown(socket.SHUT_WR)
            assert ended(one) == b"bye"
            assert program.stop(signal.SIGTERM) == 0
            assert ended(other) == b""
        program.line(r"outcomes \{'finished': 1, 'failed': 1\}")


@pytest.mark.parametrize("loop", LOOPS)
def test_ctrl_c_that_nobody_handles_comes_out_of_serve_forever(loop):
    source = SIGNALLED.replace("lifecycle=Graceful(20)", "lifecycle=Graceful(0.1, signals=False)").replace(
        "    server.serve_forever()",
        "    try:\n        server.serve_forever()\n    except KeyboardInterrupt:\n        print('interrupted')",
    )
    with Program.python("-c", source, loop, env=with_path(TESTS)) as program:
        with greeted(program):
            assert program.stop(signal.SIGINT) == 0
        program.line("interrupted")


# --- blocking handlers ------------------------------------------------------------------------------------------------


def test_blocking_handlers_run_in_so_many_threads_and_nothing_more_is_taken(dispatcher):
    inside, leave = threading.Semaphore(0), threading.Event()
    threads = set()

    def handle(request, client_address, server):
        request.recv(1)
        threads.add(threading.current_thread().name)
        inside.release()
        leave.wait(10)

    with Server(ANYWHERE, handle, dispatcher=attrs.evolve(dispatcher, workers=3)).start() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(8)]
        for client in clients:
            client.sendall(b"x")
        for _ in range(3):
            assert inside.acquire(timeout=10)
        assert not inside.acquire(timeout=0.1)
        leave.set()
        assert [ended(client) for client in clients] == [b""] * 8
        server.stop()
    assert threads == {"socketkit-asyncio-1", "socketkit-asyncio-2", "socketkit-asyncio-3"}
    assert server.stats().outcomes == {"finished": 8}


def test_it_can_be_stopped_while_every_thread_is_busy(dispatcher):
    inside = threading.Event()

    def handle(request, client_address, server):
        inside.set()
        request.sendall(request.recv(1))

    with Server(ANYWHERE, handle, dispatcher=attrs.evolve(dispatcher, workers=1)).start() as server, connect(server) as client:
        assert inside.wait(10)
        server.stop(wait=False)
        draining(server)
        client.sendall(b"x")
        assert ended(client) == b"x"
    assert server.stats().outcomes == {"finished": 1}


def test_connections_that_say_nothing_hold_no_thread(dispatcher):
    class Lines(ConversationHandler):
        def handle_one_request(self):
            self.wfile.write(self.rfile.readline().upper())

    with Server(ANYWHERE, Lines, dispatcher=attrs.evolve(dispatcher, workers=1)).start() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(5)]
        for text in (b"a\n", b"b\n"):
            for client in clients:
                client.sendall(text)
                assert client.recv(10) == text.upper()


def test_a_parked_conversation_ends_when_its_time_is_up(dispatcher):
    begun = threading.Event()

    class Lines(ConversationHandler):
        def setup(self):
            super().setup()
            begun.set()

        def handle_one_request(self):
            self.wfile.write(self.rfile.readline().upper())
            self.timeout = 0.05

    with Server(ANYWHERE, Lines, dispatcher=dispatcher).start() as server, connect(server) as client:
        assert begun.wait(10)  # its wait for the first byte is over, and no other deadline is left
        client.sendall(b"a\n")
        assert ended(client) == b"A\n"
    assert server.stats().outcomes == {"finished": 1}


def test_a_blocking_handler_that_raises_anything_ends_only_its_request(dispatcher, caplog):
    def handle(request, client_address, server):
        request.recv(10)
        raise SystemExit(3)

    with Server(ANYWHERE, handle, dispatcher=dispatcher).start() as server:
        for _ in range(3):
            assert talk(server.addresses[0], b"") == b""
        server.stop()
    assert server.stats().outcomes == {"failed": 3}


def test_no_more_tasks_than_the_limit_run_at_once(dispatcher):
    running, most = [], []

    async def handle(self):
        running.append(self)
        most.append(len(running))
        await self.reader.readexactly(1)
        running.remove(self)
        self.writer.write(b"!")

    handler = asynchronous(handle)
    with Server(ANYWHERE, handler, dispatcher=attrs.evolve(dispatcher, limit=3)).start() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(10)]
        while len(running) < 3:
            time.sleep(0.001)
        assert server.stats().accepted == 3
        for client in clients:
            client.sendall(b"x")
        assert [ended(client) for client in clients] == [b"!"] * 10
    assert max(most) == 3


# --- classic servers --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_classic_server_runs_asynchronous_handlers_in_the_loop_and_others_in_threads(dispatcher, monkeypatch):
    monkeypatch.setattr(Override, "dispatcher", dispatcher)
    monkeypatch.setattr(Override, "is_set", True)
    for handler in (Upper, StreamUpper):
        with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)) as server:
            assert [talk(server.server_address, b"hello\n") for _ in range(3)] == [b"HELLO\n"] * 3
    with serving(socketserver.UDPServer(("127.0.0.1", 0), UpperDatagram)) as server:
        assert ask(server.server_address, b"hello") == b"HELLO"


def test_a_handler_may_close_a_classic_server(dispatcher, monkeypatch):
    monkeypatch.setattr(Override, "dispatcher", dispatcher)
    monkeypatch.setattr(Override, "is_set", True)

    async def handle(self):
        self.server.shutdown()
        self.server.server_close()
        await asyncio.sleep(0.01)
        self.writer.write(b"good bye")

    with serving(socketserver.TCPServer(("127.0.0.1", 0), asynchronous(handle))) as server:
        assert talk(server.server_address, b"") == b"good bye"


# --- the watchdog -----------------------------------------------------------------------------------------------------


class Sleeper(AsyncStreamRequestHandler):
    async def handle(self):
        await self.reader.read()
        time.sleep(0.3)  # noqa: ASYNC251 - that is the offence


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "socketkit.dispatchers.aio"]


def test_a_handler_that_keeps_the_loop_waiting_is_named_with_where_it_stands(dispatcher, caplog):
    with Server(ANYWHERE, Sleeper, dispatcher=dispatcher).start() as server:
        assert talk(server.addresses[0], b"") == b""
        server.stop()
    [warning] = warnings(caplog)
    assert warning.startswith("Sleeper for ('127.0.0.1', ")
    assert "has blocked the event loop for more than 0.1 s" in warning
    assert "time.sleep(0.3)" in warning
    assert "in handle" in warning


def test_a_task_that_a_handler_made_is_named_too(caplog):
    async def dawdle():
        time.sleep(0.3)  # noqa: ASYNC251 - that is the offence

    async def handle(self):
        await asyncio.create_task(dawdle())

    with Server(ANYWHERE, asynchronous(handle), dispatcher=Asyncio()).start() as server:
        assert talk(server.addresses[0], b"") == b""
        server.stop()
    [warning] = warnings(caplog)
    assert "dawdle" in warning.splitlines()[0]
    assert "time.sleep(0.3)" in warning


@pytest.mark.parametrize("options", [{"slow": 5.0}, {"slow": None}], ids=str)
def test_nothing_is_said_of_handlers_that_are_quick_enough(caplog, options):
    with Server(ANYWHERE, Sleeper, dispatcher=Asyncio(**options)).start() as server:
        assert talk(server.addresses[0], b"") == b""
        server.stop()
    assert warnings(caplog) == []


def test_waiting_is_not_slowness(caplog):
    async def handle(self):
        await asyncio.sleep(0.3)

    with Server(ANYWHERE, asynchronous(handle), dispatcher=Asyncio()).start() as server:
        assert talk(server.addresses[0], b"") == b""
        server.stop()
    assert warnings(caplog) == []


@pytest.mark.parametrize("loop", LOOPS)
def test_an_idle_server_makes_no_wake_ups_though_connections_are_open(loop):
    python(
        """
import os, pathlib, socket, sys, time
from socketkit import Graceful, Server, TCP
from socketkit.dispatchers.aio import Asyncio
from socketkit._engine.override import Override
from socketkit.handlers.coroutines import AsyncStreamRequestHandler

class Upper(AsyncStreamRequestHandler):
    async def handle(self):
        while line := await self.reader.readline():
            self.writer.write(line.upper())

def switches():
    return {path: [line for line in path.read_text().splitlines() if line.startswith("voluntary")]
            for path in pathlib.Path("/proc/self/task").glob("*/status") if path.parent.name != str(os.getpid())}

others = len(switches())
with Server(TCP("127.0.0.1", 0), Upper, dispatcher=Asyncio(sys.argv[1]), lifecycle=Graceful(1)).start() as server:
    clients = [socket.create_connection(server.addresses[0]) for _ in range(10)]
    for client in clients:
        client.sendall(b"a\\n")
        assert client.recv(10) == b"A\\n"
    time.sleep(0.5)  # the watchdog goes to sleep
    before = switches()
    assert len(before) == others + 3, before  # the loop, its watchdog, and who keeps the deadlines
    time.sleep(1.0)
    assert switches() == before, (before, switches())
    for client in clients:
        client.close()
""",
        loop,
    )


# --- composing --------------------------------------------------------------------------------------------------------


def test_uvloop_that_is_not_installed_is_refused_with_its_remedy(monkeypatch):
    monkeypatch.setattr(aio, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"uvloop is not installed; install socketkit\[uvloop\], or leave loop at 'asyncio'"):
        Asyncio("uvloop")
    assert Asyncio("asyncio").loop == "asyncio"


@pytest.mark.parametrize("options", [{"loop": "trio"}, {"limit": 0}, {"workers": 0}, {"slow": -1}], ids=str)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        Asyncio(**options)


def test_an_asynchronous_handler_under_a_dispatcher_that_cannot_run_it_says_so(monkeypatch):
    with pytest.raises(IncompatibleError, match=r"Upper is asynchronous, and nothing here awaits it; serve it with the dispatcher asyncio"):
        Upper(None, None, None)
    assert Upper.is_async
    assert Asyncio.runs_async


def test_a_request_that_is_no_plain_connection_fails_with_a_clear_error():
    wrong = type("Wrong", (Upper,), {"request_kinds": {"stream", "datagram"}})
    with Recording(UDP("127.0.0.1", 0), wrong, dispatcher=Asyncio()).start() as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", server.addresses[0])
            assert "Wrong cannot read from a tuple" in str(server.errors.get(timeout=10))


def test_a_bare_asynchronous_handler_does_nothing_and_is_served():
    with Server(ANYWHERE, AsyncRequestHandler, dispatcher=Asyncio()).start() as server:
        assert talk(server.addresses[0], b"") == b""
    assert server.stats().outcomes == {"finished": 1}


@pytest.mark.parametrize("loop", LOOPS)
def test_each_process_of_prefork_can_have_a_loop(loop):
    served = python(
        """
import os, sys
from socketkit import Graceful, Server, TCP
from socketkit._engine.override import Override
from socketkit.handlers.coroutines import AsyncStreamRequestHandler
from socketkit.dispatchers.aio import Asyncio
from socketkit.dispatchers.prefork import Prefork
from socketkit.testing.clients import talk

class Pid(AsyncStreamRequestHandler):
    async def handle(self):
        self.writer.write(str(os.getpid()).encode())

server = Server(TCP("127.0.0.1", 0), Pid, dispatcher=Prefork(2, Asyncio(sys.argv[1])), lifecycle=Graceful(10))
with server:
    client = os.fork()
    if not client:
        pids = set()
        while len(pids) < 2:
            pids.add(talk(server.addresses[0], b""))
        os.kill(os.getppid(), 15)
        os._exit(len(pids))
    server.serve_forever()
    assert os.waitstatus_to_exitcode(os.waitpid(client, 0)[1]) == 2
print(*server.stats().outcomes)
""",
        loop,
    )
    assert served.stdout == "finished\n"


# --- the crew ---------------------------------------------------------------------------------------------------------


def test_a_crew_without_threads_runs_with_those_it_has(monkeypatch, caplog):
    start, freed = threading.Thread.start, threading.Semaphore(0)
    crew = WorkerThreads(3, freed.release, "few")
    inside, leave = threading.Event(), threading.Event()
    crew.give(lambda: (inside.set(), leave.wait(10)))
    assert inside.wait(10)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (_ for _ in ()).throw(RuntimeError("no more")))
    crew.give(leave.is_set)
    assert not freed.acquire(timeout=0)
    leave.set()
    assert freed.acquire(timeout=10)
    assert freed.acquire(timeout=10)
    assert crew.wait(10)
    crew.close()
    other = WorkerThreads(3, freed.release, "none")
    with pytest.raises(RuntimeError, match="no more"):
        other.give(print)
    assert other.is_idle
    monkeypatch.setattr(threading.Thread, "start", start)
    assert logs.flush()
    assert "only 1 of 3 run: no more" in caplog.text


def test_whoever_is_inside_does_not_wait_for_itself():
    load, answers = ConcurrencyLimit(2, lambda: None), []
    load.begin()
    load.run(lambda: answers.append(load.wait(10)))
    assert answers == [True]
    load.begin()
    assert not load.wait(0.01)
    load.end()
    assert load.wait(0)


def test_a_layer_that_replaces_the_socket_is_refused_at_composition():
    @attrs.frozen
    class Replaces:
        replaces_socket: ClassVar[bool] = True

        def wrap(self, request, client_address):
            return request, client_address

    with pytest.raises(IncompatibleError, match="Replaces replaces the socket with another object"):
        Server(Layered(ANYWHERE, Replaces()), Upper, dispatcher=Asyncio())


# --- other libraries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [Asyncio(), Prefork(1, Asyncio())], ids=["asyncio", "prefork"])
def test_a_handler_for_another_library_is_refused(recipe):
    with pytest.raises(IncompatibleError, match=r"is written for trio, and \w+ has an event loop of asyncio; use dispatcher='trio'"):
        Server(ANYWHERE, asynchronous(hold, async_library="trio"), dispatcher=recipe)


def test_a_group_of_disconnections_counts_as_aborted():
    async def handle(self):
        raise ExceptionGroup("tasks", [ConnectionResetError(), BrokenPipeError()])

    with Server(ANYWHERE, asynchronous(handle), dispatcher=Asyncio()).start() as server:
        assert talk(server.addresses[0], b"x") == b""
        server.stop()
    assert server.stats().outcomes == {"aborted": 1}


def test_whoever_awaits_a_request_may_say_how_to_wait():
    asked = threading.Event()

    class Waits(coroutines.Asyncio):
        async def until_ready(self, request, *, sends):
            asked.set()
            await super().until_ready(request, sends=sends)

    class Loop(EventLoop):
        def dispatch(self, request, client_address):
            self._start(self._work.run_async(request, client_address, Waits()), "a request")

    @attrs.frozen
    class Recipe(Asyncio):
        def start(self, work):
            return Loop(self, work)

    transport = Layered(ANYWHERE, ProxyProtocol(["127.0.0.0/8"]))
    with Server(transport, Upper, dispatcher=Recipe()).start() as server, connect(server) as client:
        client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000")
        assert asked.wait(10)
        client.sendall(b"0 443\r\nhello\n")
        assert client.recv(100) == b"HELLO\n"
