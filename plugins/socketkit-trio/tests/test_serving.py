"""The dispatcher's limit, and how a server with an event loop of trio stops, starts again, and leaves nothing behind."""

from __future__ import annotations

import threading

import pytest
import trio
from socketkit_trio import Trio, TrioDatagramRequestHandler, TrioStreamRequestHandler

from socketkit import (
    TCP,
    Asyncio,
    AsyncStreamRequestHandler,
    Classic,
    Graceful,
    Prefork,
    Server,
    StreamRequestHandler,
)
from socketkit.catalog import Catalog
from socketkit.errors import ConfigError, IncompatibleError
from socketkit.testing.clients import connect, talk


class Greeting(TrioStreamRequestHandler):
    """Greets its client, and sends back what it says."""

    async def handle(self):
        await self.stream.send_all(b"hello")
        await self.stream.send_all(await self.stream.receive_some())


class Stopping:
    """An observer that reports when a drain begins."""

    def __init__(self):
        self.begun = threading.Event()

    def server_stopping(self, server):
        self.begun.set()


def stream_handler(handle, **attributes):
    return type("Handler", (TrioStreamRequestHandler,), {"handle": handle, **attributes})


# --- many --------------------------------------------------------------------------------------------------------------


def test_a_thousand_clients_wait_in_one_thread(serve):
    served = serve(Greeting, dispatcher=Trio())
    clients = [served.client(30) for _ in range(1000)]
    assert {client.recv(5) for client in clients} == {b"hello"}
    named = [thread.name for thread in threading.enumerate() if thread.name.startswith("socketkit")]
    assert named.count("socketkit-trio") == 1
    assert not [name for name in named if "pool" in name]
    for client in clients:
        client.sendall(b"x")
    assert {client.recv(5) for client in clients} == {b"x"}
    served.server.stop()
    assert served.server.stats().outcomes == {"finished": 1000}


def test_the_limit_is_hard_and_what_is_beyond_it_waits_for_its_turn(serve):
    served = serve(Greeting, dispatcher=Trio(3))
    clients = [served.client() for _ in range(6)]
    inside, waiting = clients[:3], clients[3:]
    assert [client.recv(5) for client in inside] == [b"hello"] * 3
    assert served.server.stats().accepted == 3
    for done, next_one in zip(inside, waiting, strict=True):
        next_one.setblocking(False)
        with pytest.raises(BlockingIOError):
            next_one.recv(5)
        next_one.settimeout(10)
        done.sendall(b"bye")
        assert done.recv(5) == b"bye"
        assert next_one.recv(5) == b"hello"
    assert served.server.stats().active == 3


def test_a_full_server_stops_at_once(serve):
    served = serve(Greeting, dispatcher=Trio(1))
    inside, _waiting = served.client(), served.client()
    assert inside.recv(5) == b"hello"
    assert served.server.stop(drain=0).stuck == ()
    assert served.server.stats().active == 0


# --- stopping ----------------------------------------------------------------------------------------------------------


def test_a_server_is_started_and_stopped_again_and_again():
    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Trio())
    for _ in range(20):
        server.start()
        assert talk(server.addresses[0], b"bye") == b"hellobye"
        server.stop()
    assert server.stats().outcomes == {"finished": 20}


def test_a_handler_may_stop_its_server(serve):
    async def handle(self):
        await self.stream.receive_some()
        assert self.server.stop() is None
        await self.stream.send_all(b"stopping")

    served = serve(stream_handler(handle), dispatcher=Trio())
    assert talk(served.address, b"bye") == b"stopping"
    served.server.stop()
    assert served.server.stats().outcomes == {"finished": 1}


@pytest.mark.parametrize("lifecycle", [Classic(), Graceful(drain=10)], ids=["classic", "graceful"])
def test_a_handler_may_close_its_server(lifecycle):
    async def handle(self):
        await self.stream.receive_some()
        self.server.server_close()
        await self.stream.send_all(b"closed")

    server = Server("tcp://127.0.0.1:0", stream_handler(handle), dispatcher=Trio(), lifecycle=lifecycle).start()
    assert talk(server.addresses[0], b"bye") == b"closed"
    server.server_close()
    assert server.stats().outcomes == {"finished": 1}


def test_a_drain_lets_handlers_finish(serve):
    stopping = Stopping()
    served = serve(Greeting, dispatcher=Trio(), observers=[stopping])
    client = served.client()
    assert client.recv(5) == b"hello"
    served.server.stop(drain=10, wait=False)
    assert stopping.begun.wait(10)
    client.sendall(b"bye")
    assert client.recv(5) == b"bye"
    report = served.server.stop()
    assert (report.finished, report.forced, report.stuck) == (1, 0, ())


def test_at_its_deadline_a_drain_cancels_handlers_which_may_clean_up_for_a_bounded_time(serve, caplog):
    async def handle(self):
        await self.stream.send_all(b"held")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await trio.sleep_forever()
        finally:
            with trio.move_on_after(5, shield=True):
                await trio.sleep(0.01)
                cleaned.append("handle")

    async def finish(self):
        cleaned.append("finish")

    cleaned = []
    served = serve(stream_handler(handle, finish=finish), dispatcher=Trio())
    clients = [served.client() for _ in range(3)]
    assert {client.recv(4) for client in clients} == {b"held"}
    report = served.server.stop(drain=0.05)
    assert (report.finished, report.forced, report.stuck) == (0, 3, ())
    assert sorted(cleaned) == ["finish"] * 3 + ["handle"] * 3
    assert served.server.stats().outcomes == {"failed": 3}
    assert "Cancelled" not in caplog.text


def test_a_handler_that_cannot_be_cancelled_is_reported_and_does_not_hold_up_the_stop(serve):
    release, released = threading.Event(), threading.Event()

    async def handle(self):
        await self.stream.send_all(b"held")
        with trio.CancelScope(shield=True):
            while not release.is_set():  # noqa: ASYNC110 - another thread sets it
                await trio.sleep(0.01)
        released.set()

    served = serve(stream_handler(handle), dispatcher=Trio())
    assert served.client().recv(4) == b"held"
    report = served.server.stop(drain=0)
    assert len(report.stuck) == 1
    release.set()
    assert released.wait(10)


def test_clients_in_the_kernel_s_queue_are_served_by_a_drain_though_the_server_is_full(serve):
    served = serve(Greeting, dispatcher=Trio(1))
    clients = [served.client() for _ in range(5)]
    assert clients[0].recv(5) == b"hello"
    served.server.stop(drain=10, wait=False)
    for client in clients:
        client.sendall(b"x")
        with client.makefile("rb") as file:
            assert file.read() in {b"x", b"hellox"}
    served.server.stop()
    assert served.server.stats().outcomes == {"finished": 5}


def test_requests_of_the_run_before_go_on_beside_those_of_the_next():
    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Trio(), lifecycle=Classic())
    with server.start():
        with connect(server.addresses[0], "stream", 10) as client:
            assert client.recv(5) == b"hello"
            server.stop()
            server.start()
            assert talk(server.addresses[0], b"bye") == b"hellobye"
            client.sendall(b"bye")
            assert client.recv(5) == b"bye"
    assert server.stats().outcomes == {"finished": 2}


# --- without a loop of the server's ------------------------------------------------------------------------------------


def test_a_single_request_is_served_to_its_end_in_the_calling_thread():
    with Server(TCP("127.0.0.1", 0), Greeting, dispatcher=Trio()) as server:
        for _ in range(3):
            with connect(server.addresses[0], "stream", 10) as client:
                client.sendall(b"bye")
                server.handle_request()
                assert server.stats().active == 0
                assert client.recv(20) == b"hellobye"


def test_a_server_that_hands_requests_to_threads_of_its_own_is_served():
    class Threading(Server):
        def process_request(self, request, client_address):
            threads.append(threading.Thread(target=super().process_request, args=(request, client_address)))
            threads[-1].start()

    threads = []
    with Threading(TCP("127.0.0.1", 0), Greeting, dispatcher=Trio()).start() as server:
        assert talk(server.addresses[0], b"bye") == b"hellobye"
        for thread in threads:
            thread.join(10)
    assert len(threads) == 1


def test_periodic_work_is_done_in_the_serving_thread():
    class Acts(Server):
        def service_actions(self):
            called.append(threading.current_thread())
            if len(called) == 3:
                enough.set()

    called, enough = [], threading.Event()
    server = Acts("tcp://127.0.0.1:0", Greeting, dispatcher=Trio())
    serving = threading.Thread(target=server.serve_forever, args=(0.02,))
    serving.start()
    assert enough.wait(10)
    server.stop()
    serving.join()
    assert set(called) == {serving}


def test_an_error_of_the_intake_ends_serving():
    class Broken(Server):
        def verify_request(self, request, client_address):
            raise SystemExit("a hook that ends the process")

    server = Broken("tcp://127.0.0.1:0", Greeting, dispatcher=Trio())
    ended = []

    def run():
        try:
            server.serve_forever()
        except BaseException as error:  # noqa: BLE001 - of interest here
            ended.append(error)

    with server:
        serving = threading.Thread(target=run)
        serving.start()
        with connect(server.addresses[0], "stream", 10) as client:
            assert client.recv(5) == b""
        server.stop()
        serving.join(10)
    assert server.stats().active == 0


def test_a_program_may_run_trio_itself_even_in_the_thread_that_starts_the_server():
    async def main():
        server.start()
        for _ in range(5):
            async with await trio.open_tcp_stream(*server.addresses[0]) as stream:
                await stream.send_all(b"bye")
                assert b"".join([data async for data in stream]) == b"hellobye"
        server.stop()

    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Trio())
    trio.run(main)
    assert server.stats().outcomes == {"finished": 5}


def test_a_program_may_serve_in_a_task_of_its_own():
    async def main():
        server.serve_forever()  # it blocks the program's tasks, and not the server's

    server = Server("tcp://127.0.0.1:0", Greeting, dispatcher=Trio())
    with server:
        serving = threading.Thread(target=trio.run, args=(main,))
        serving.start()
        assert talk(server.addresses[0], b"bye") == b"hellobye"
        server.stop()
        serving.join()


# --- composition -------------------------------------------------------------------------------------------------------


def test_it_is_found_by_its_name():
    assert Catalog.load().find("dispatcher", "trio").recipe is Trio
    assert Server("tcp://127.0.0.1:0", Greeting, dispatcher="trio:500,workers=3").dispatcher == Trio(500, workers=3)


@pytest.mark.parametrize(("handler", "most"), [(Greeting, 500), (StreamRequestHandler, 3)])
def test_a_server_says_how_many_handlers_it_runs_at_once(handler, most):
    for dispatcher, processes in (("trio:500,workers=3", 1), ("prefork:2/trio:500,workers=3", 2)):
        assert Server("tcp://127.0.0.1:0", handler, dispatcher=dispatcher).max_handlers == processes * most


@pytest.mark.parametrize("options", ["trio:0", "trio:many", "trio,workers=0"])
def test_an_option_that_is_wrong_is_refused(options):
    with pytest.raises((ConfigError, ValueError), match="whole number"):
        Server("tcp://127.0.0.1:0", Greeting, dispatcher=options)


@pytest.mark.parametrize(
    ("handler", "dispatcher", "message"),
    [
        (Greeting, Asyncio(), "Greeting is written for trio, and Asyncio has an event loop of asyncio; use dispatcher='trio'"),
        (Greeting, Prefork(1, Asyncio()), "Greeting is written for trio, and Prefork has an event loop of asyncio; use dispatcher='trio'"),
        (AsyncStreamRequestHandler, Trio(), "is written for asyncio, and Trio has an event loop of trio; use dispatcher='asyncio'"),
        (
            AsyncStreamRequestHandler,
            Prefork(1, Trio()),
            "is written for asyncio, and Prefork has an event loop of trio; use dispatcher='asyncio'",
        ),
        (Greeting, None, "Greeting is an async handler, which Adaptive cannot run; use dispatcher='trio'"),
        (TrioDatagramRequestHandler, Trio(), "accepts only datagram requests"),
    ],
)
def test_what_cannot_work_together_is_refused(handler, dispatcher, message):
    with pytest.raises(IncompatibleError, match=message):
        Server(TCP("127.0.0.1", 0), handler, dispatcher=dispatcher)


@pytest.mark.parametrize("handler", [Greeting, StreamRequestHandler])
def test_what_works_together_is_not_refused(handler):
    for dispatcher in (Trio(), Prefork(1, Trio())):
        Server(TCP("127.0.0.1", 0), handler, dispatcher=dispatcher)
