"""Handlers for trio: what they get, and what becomes of what they raise."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import socket
import threading
from functools import partial

import pytest
import trio
import trio.testing
from socketkit_trio import ConnectionLostError, Trio, TrioDatagramRequestHandler, TrioStreamRequestHandler

from socketkit import ConversationHandler, Limits, UnixDatagram, UnixStream
from socketkit.errors import IncompatibleError, StalledError
from socketkit.logs import flush
from socketkit.testing.clients import rest_of


def stream_handler(handle, **attributes):
    """Return a class of handlers of connections with this `handle`."""
    return type("Handler", (TrioStreamRequestHandler,), {"handle": handle, **attributes})


async def echo(handler):
    while data := await handler.stream.receive_some():
        await handler.stream.send_all(data)


async def hold(handler):
    """Greet the client and wait for it."""
    await handler.stream.send_all(b"held")
    await handler.stream.receive_some()


class Failures:
    """Collects what observers hear of requests that fail."""

    def __init__(self):
        self.errors = []

    def request_failed(self, server, client_address, error):
        self.errors.append(error)


@pytest.fixture
def logged(caplog):
    """Return a function that returns the tracebacks that socketkit has logged as errors so far."""

    def errors():
        flush()
        return [record.exc_text for record in caplog.records if record.levelno >= logging.ERROR]

    return errors


# --- streams ---------------------------------------------------------------------------------------------------------


def test_it_echoes_until_the_client_ends_its_side(serve):
    served = serve(stream_handler(echo), dispatcher=Trio())
    client = served.client()
    for number in range(20):
        client.sendall(b"%d" % number)
        assert client.recv(100) == b"%d" % number
    client.shutdown(socket.SHUT_WR)
    assert client.recv(100) == b""
    served.server.stop()
    assert served.server.stats().outcomes == {"finished": 1}


def test_the_client_may_end_its_side_before_the_answer(serve):
    async def handle(self):
        received = b""
        while data := await self.stream.receive_some(3):
            assert len(data) <= 3
            received += data
        await self.stream.send_all(received.upper())

    client = serve(stream_handler(handle), dispatcher=Trio()).client()
    client.sendall(b"hello, world")
    client.shutdown(socket.SHUT_WR)
    assert rest_of(client) == b"HELLO, WORLD"


def test_a_handler_may_end_its_side_first(serve):
    async def handle(self):
        await self.stream.send_all(b"bye")
        await self.stream.send_eof()
        received.append(await self.stream.receive_some())

    received = []
    served = serve(stream_handler(handle), dispatcher=Trio())
    client = served.client()
    assert rest_of(client) == b"bye"
    client.sendall(b"thanks")
    served.server.stop()
    assert received == [b"thanks"]


def test_a_handler_may_close_the_stream_itself(serve):
    async def handle(self):
        await self.stream.aclose()
        await self.stream.aclose()
        for use in (self.stream.receive_some, partial(self.stream.send_all, b"x"), self.stream.wait_send_all_might_not_block):
            with pytest.raises(trio.ClosedResourceError):
                await use()
        done.set()

    done = threading.Event()
    served = serve(stream_handler(handle), dispatcher=Trio())
    assert rest_of(served.client()) == b""
    assert done.wait(10)
    served.server.stop()
    assert served.server.stats().outcomes == {"finished": 1}


def test_closing_the_stream_wakes_the_task_that_receives(serve):
    async def handle(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.wait)
            await trio.testing.wait_all_tasks_blocked()
            await self.stream.aclose()

    async def wait(self):
        with pytest.raises(trio.ClosedResourceError):
            await self.stream.receive_some()
        done.set()

    done = threading.Event()
    served = serve(stream_handler(handle, wait=wait), dispatcher=Trio())
    assert rest_of(served.client()) == b""
    assert done.wait(10)


def test_one_task_may_send_while_another_receives_but_two_may_not_send(serve):
    size = 50_000_000  # more than the system holds on the way

    async def handle(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.stream.send_all, bytes(size))
            assert await self.stream.receive_some() == b"go"
            for use in (partial(self.stream.send_all, b"x"), self.stream.wait_send_all_might_not_block, self.stream.send_eof):
                with pytest.raises(trio.BusyResourceError):
                    await use()

    served = serve(stream_handler(handle), dispatcher=Trio())
    client = served.client()
    received = len(client.recv(1))
    client.sendall(b"go")
    while data := client.recv(1 << 20):
        received += len(data)
    assert received == size
    served.server.stop()
    assert served.server.stats().outcomes == {"finished": 1}


def test_bytes_of_all_kinds_can_be_sent(serve):
    async def handle(self):
        import array

        for data in (b"", b"a", bytearray(b"b"), memoryview(b"c"), memoryview(array.array("H", [0x6464]))):
            await self.stream.send_all(data)
        with pytest.raises(ValueError, match="max_bytes must be at least 1, not 0"):
            await self.stream.receive_some(0)

    assert rest_of(serve(stream_handler(handle), dispatcher=Trio()).client()) == b"abcdd"


def test_it_serves_unix_sockets(serve, tmp_path):
    served = serve(stream_handler(echo), transport=UnixStream(str(tmp_path / "socket")), dispatcher=Trio())
    client = served.client()
    client.sendall(b"hello")
    assert client.recv(100) == b"hello"


def test_a_slow_reader_holds_up_its_own_handler_and_no_other(serve):
    piece, count = bytes(1 << 16), 200

    async def handle(self):
        if await self.stream.receive_some() == b"ping":
            await self.stream.send_all(b"pong")
            return
        for number in range(count):
            await self.stream.send_all(piece)
            sent.append(number)

    sent = []
    served = serve(stream_handler(handle), dispatcher=Trio())
    slow = served.client()
    slow.sendall(b"much")
    assert slow.recv(1) == b"\0"
    for _ in range(3):
        quick = served.client()
        quick.sendall(b"ping")
        assert quick.recv(100) == b"pong"
    assert len(sent) < count  # it waits for the client
    assert len(rest_of(slow)) == count * len(piece) - 1
    assert len(sent) == count


def test_unread_bytes_do_not_cost_the_client_the_reply(serve):
    async def handle(self):
        await self.stream.send_all(b"too much")

    client = serve(stream_handler(handle, speaks_first=True), dispatcher=Trio()).client()
    client.sendall(bytes(100_000))
    assert rest_of(client) == b"too much"


# --- the client goes, or stops -----------------------------------------------------------------------------------------


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


@pytest.mark.parametrize("in_nursery", [False, True])
def test_a_client_that_resets_its_connection_counts_as_aborted(serve, logged, in_nursery):
    async def receive(self):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await self.stream.receive_some()
        assert isinstance(caught.value, ConnectionLostError)
        raise caught.value

    async def handle(self):
        await self.stream.send_all(b"held")
        async with trio.open_nursery() if in_nursery else contextlib.nullcontext() as nursery:
            if in_nursery:
                nursery.start_soon(receive, self)
            else:
                await receive(self)

    failures = Failures()
    served = serve(stream_handler(handle), dispatcher=Trio(), observers=[failures])
    client = served.client()
    assert client.recv(4) == b"held"
    reset(client)
    served.server.stop()
    assert served.server.stats().outcomes == {"aborted": 1}
    assert len(failures.errors) == 1
    assert logged() == []


def test_a_client_that_reads_nothing_for_too_long_has_timed_out_and_sees_that_the_reply_is_cut_off(serve):
    async def handle(self):
        with pytest.raises(StalledError) as caught:
            await self.stream.send_all(bytes(100_000_000))
        raise caught.value

    failures = Failures()
    served = serve(stream_handler(handle), dispatcher=Trio(), limits=Limits(write_stall=0.2), observers=[failures])
    client = served.client()
    client.sendall(b"x")
    served.server.stop()
    assert served.server.stats().outcomes == {"timed out": 1}
    with pytest.raises(ConnectionResetError):
        rest_of(client)


def test_a_reply_that_is_cancelled_in_the_middle_does_not_look_complete(serve):
    async def handle(self):
        with trio.move_on_after(0.1):
            await self.stream.send_all(bytes(100_000_000))

    served = serve(stream_handler(handle), dispatcher=Trio())
    client = served.client()
    served.server.stop()
    with pytest.raises(ConnectionResetError):
        rest_of(client)


def test_a_silent_client_is_disconnected_at_its_deadline(serve):
    served = serve(stream_handler(echo), dispatcher=Trio(), limits=Limits(first_byte=0.1))
    assert rest_of(served.client()) == b""
    served.server.stop()
    assert served.server.stats().outcomes == {"timed out": 1}


def test_a_handler_may_set_a_time_limit_of_its_own(serve):
    async def handle(self):
        try:
            with trio.fail_after(0.05):
                await self.stream.receive_some()
        except trio.TooSlowError:
            await self.stream.send_all(b"too slow")

    assert rest_of(serve(stream_handler(handle), dispatcher=Trio()).client()) == b"too slow"


# --- what handlers raise -----------------------------------------------------------------------------------------------


def test_an_error_ends_its_own_request_and_is_logged_once(serve, logged):
    async def handle(self):
        if await self.stream.receive_some() == b"raise":
            raise RuntimeError("on purpose")
        await self.stream.send_all(b"fine")

    served = serve(stream_handler(handle), dispatcher=Trio())
    bystander, failing = served.client(), served.client()
    failing.sendall(b"raise")
    assert rest_of(failing) == b""
    bystander.sendall(b"x")
    assert rest_of(bystander) == b"fine"
    served.server.stop()
    assert served.server.stats().outcomes == {"finished": 1, "failed": 1}
    (traceback,) = logged()
    assert "on purpose" in traceback


def test_the_errors_of_a_nursery_end_only_their_own_request_and_are_logged_once(serve, logged):
    async def fail(number):
        raise ValueError(f"task {number}")

    async def handle(self):
        await self.stream.receive_some()
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(fail, number)

    served = serve(stream_handler(handle), dispatcher=Trio())
    for _ in range(2):
        client = served.client()
        client.sendall(b"x")
        assert rest_of(client) == b""
    served.server.stop()
    assert served.server.stats().outcomes == {"failed": 2}
    assert ["ExceptionGroup" in traceback for traceback in logged()] == [True, True]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("in_nursery", [False, True])
def test_what_no_handler_should_raise_ends_only_its_own_request(serve, logged, kind, in_nursery):
    async def fail():
        raise kind

    async def handle(self):
        if await self.stream.receive_some() == b"x":
            await self.stream.send_all(b"fine")
            return
        async with trio.open_nursery() as nursery:
            if in_nursery:
                nursery.start_soon(fail)
            else:
                raise kind

    served = serve(stream_handler(handle), dispatcher=Trio())
    for data, answer in ((b"raise", b""), (b"x", b"fine")):
        client = served.client()
        client.sendall(data)
        assert rest_of(client) == answer
    served.server.stop()
    assert served.server.stats().outcomes == {"finished": 1, "failed": 1}
    assert len(logged()) == 1


def test_finish_runs_after_an_error_but_not_if_setup_raises(serve, logged):
    ran = []

    class Fails(TrioStreamRequestHandler):
        where = ""

        async def setup(self):
            await super().setup()
            Fails.where = (await self.stream.receive_some()).decode()
            if self.where == "setup":
                raise RuntimeError(self.where)

        async def handle(self):
            raise RuntimeError(self.where)

        async def finish(self):
            ran.append(self.where)
            await super().finish()

    served = serve(Fails, dispatcher=Trio())
    for where in ("setup", "handle"):
        client = served.client()
        client.sendall(where.encode())
        assert rest_of(client) == b""
    served.server.stop()
    assert ran == ["handle"]
    assert len(logged()) == 2


# --- tasks -------------------------------------------------------------------------------------------------------------


def test_each_request_has_a_context_of_its_own(serve):
    variable = contextvars.ContextVar("variable", default="unset")

    async def handle(self):
        seen.append(variable.get())
        variable.set("set by a request before")
        await self.stream.send_all(b"done")

    seen = []
    served = serve(stream_handler(handle), dispatcher=Trio())
    for _ in range(3):
        assert rest_of(served.client()) == b"done"
    assert seen == ["unset"] * 3


def test_the_tasks_of_a_handler_end_with_it(serve):
    async def tick(self):
        while True:
            await self.stream.send_all(b".")
            await trio.sleep(0.001)

    async def handle(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick, self)
            await self.stream.receive_some()
            nursery.cancel_scope.cancel()
        await self.stream.send_all(b"!")

    client = serve(stream_handler(handle), dispatcher=Trio()).client()
    assert client.recv(1) == client.recv(1) == b"."
    client.sendall(b"x")
    assert rest_of(client).strip(b".") == b"!"


def test_a_blocking_handler_runs_in_threads_and_its_idle_connections_hold_none(serve):
    class Lines(ConversationHandler):
        def handle_one_request(self):
            self.wfile.write(self.rfile.readline().upper())

    served = serve(Lines, dispatcher=Trio(workers=1))
    clients = [served.client() for _ in range(50)]
    for word in (b"one\n", b"two\n"):
        for client in clients:
            client.sendall(word)
            assert client.recv(100) == word.upper()
    assert served.server.stats().active == 50


# --- datagrams -----------------------------------------------------------------------------------------------------------


class Upper(TrioDatagramRequestHandler):
    async def handle(self):
        for word in self.packet.split():
            await self.reply(word.upper())


@pytest.mark.parametrize("host", ["127.0.0.1", "*"])
def test_datagrams_are_answered(serve, host):
    served = serve(Upper, transport=f"udp://{host}:0", dispatcher=Trio())
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(("127.0.0.1", served.address[1]))
        client.send(b"hello there")
        assert {client.recv(100), client.recv(100)} == {b"HELLO", b"THERE"}


def test_a_reply_waits_for_a_peer_whose_queue_is_full(serve, tmp_path):
    count = 2000

    class Many(TrioDatagramRequestHandler):
        async def handle(self):
            for number in range(count):
                await self.reply(b"%d" % number)

    served = serve(Many, transport=UnixDatagram(str(tmp_path / "socket")), dispatcher=Trio())
    client = served.client()
    client.send(b"go")
    assert [client.recv(100) for _ in range(count)] == [b"%d" % number for number in range(count)]


def test_a_sender_without_an_address_cannot_be_answered(serve, tmp_path, logged):
    served = serve(Upper, transport=UnixDatagram(str(tmp_path / "socket")), dispatcher=Trio())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect(str(tmp_path / "socket"))
        client.send(b"hello")
        served.server.stop()
    assert served.server.stats().outcomes == {"failed": 1}
    assert "no address" in logged()[0]


# --- by hand -----------------------------------------------------------------------------------------------------------


def test_nothing_but_a_dispatcher_for_trio_can_run_a_handler():
    with pytest.raises(IncompatibleError, match="nothing here awaits it; serve it with the dispatcher trio"):
        TrioStreamRequestHandler(None, None, None)
