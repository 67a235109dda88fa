"""The composed server: composing, serving, stopping, and the template methods in between."""

import contextlib
import errno
import logging
import socket
import threading
import time
from typing import ClassVar

import attrs
import pytest

from helpers import innards
from helpers.support import python
from socketkit import (
    TCP,
    UDP,
    Adaptive,
    Classic,
    Forks,
    Graceful,
    Layered,
    Pool,
    ProxyProtocol,
    Server,
    StreamRequestHandler,
    Sync,
    Threads,
    UnixStream,
    compose,
)
from socketkit.composition import capabilities
from socketkit.errors import AlreadyServingError, ConfigError, IncompatibleError, ListenError, UnknownPartError
from socketkit.seams import State
from socketkit.testing.clients import talk

ANYWHERE = TCP("127.0.0.1", 0)


class Upper(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


def echo(request, client_address, server):
    data, sock = request
    sock.sendto(data, client_address)


def ask(address, data=b"hello\n"):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(10)
        client.connect(address)
        client.sendall(data)
        with contextlib.suppress(OSError):  # a server that refuses may have reset the connection by now
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(1000), b""))


def ask_datagram(address, data):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(data, address)
        return client.recv(70000)


class Held:
    """A handler that waits inside until it is let go."""

    def __init__(self):
        self.inside, self.leave = threading.Semaphore(0), threading.Event()

    def __call__(self, request, client_address, server):
        self.inside.release()
        self.leave.wait(20)


DISPATCHERS = [Sync(), Threads(), Pool(4), Adaptive()]


@pytest.fixture(params=DISPATCHERS, ids=lambda each: type(each).__name__)
def dispatcher(request):
    return request.param


# --- composing


def test_nothing_is_bound_until_it_starts():
    server = Server(ANYWHERE, Upper)
    assert server.addresses == []
    assert server.urls == ["tcp://127.0.0.1:0"]
    assert server.state is State.NEW


def test_parts_are_objects_or_text():
    server = Server("tcp://127.0.0.1:0?backlog=7", Upper, dispatcher="thread", lifecycle="graceful:drain=500ms")
    assert server.transports == (TCP("127.0.0.1", 0, backlog=7),)
    assert server.dispatcher == Threads()
    assert server.lifecycle == Graceful(drain=0.5)


def test_the_handler_may_be_any_callable_and_may_be_named():
    assert Server(ANYWHERE, "json:dumps").RequestHandlerClass is __import__("json").dumps


def test_a_host_and_a_port_mean_tcp():
    assert Server(("127.0.0.1", 0), Upper).transports == (TCP("127.0.0.1", 0),)


def test_an_observer_with_a_misspelt_event_is_refused():
    class Watcher:
        def request_finishd(self, server, client_address, seconds): ...

    with pytest.raises(ConfigError, match="observer Watcher has a method 'request_finishd', did you mean 'request_finished'"):
        Server(ANYWHERE, Upper, observers=[Watcher()])


def test_an_observer_may_have_other_methods_and_values():
    class Watcher:
        request_finishd = 3

        def request_seconds(self): ...

        def request_finished(self, server, client_address, seconds): ...

        def _request_finishd(self): ...

    Server(ANYWHERE, Upper, observers=[Watcher()])


def test_a_server_without_a_transport_is_refused():
    with pytest.raises(ConfigError, match="at least one transport"):
        Server([], Upper)


def test_an_unknown_part_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownPartError, match="'thread'"):
        Server(ANYWHERE, Upper, dispatcher="tread")


def test_a_platform_without_a_feature_is_named(monkeypatch):
    monkeypatch.setitem(capabilities.FEATURES, "fork", False)
    with pytest.raises(IncompatibleError, match="Forks needs fork, which this platform"):
        Server(ANYWHERE, Upper, dispatcher=Forks())
    monkeypatch.setitem(capabilities.FEATURES, "Unix sockets", False)
    with pytest.raises(IncompatibleError, match="UnixStream needs Unix sockets"):
        Server(UnixStream("/nowhere"), Upper)
    monkeypatch.setitem(capabilities.FEATURES, "sockets", False)
    with pytest.raises(IncompatibleError, match="TCP needs sockets"):
        Server(ANYWHERE, Upper)


def test_a_dispatcher_that_runs_no_datagrams_is_refused_under_udp():
    @attrs.frozen
    class StreamsOnly:
        kinds: ClassVar = frozenset({"stream"})

        def start(self, work):
            raise AssertionError

    with pytest.raises(IncompatibleError, match=r"udp://127\.0\.0\.1:0 carries datagrams"):
        Server(UDP("127.0.0.1", 0), echo, dispatcher=StreamsOnly())


@pytest.mark.parametrize("dispatcher", ["fork", "prefork:2", "prefork:2/sync"])
def test_a_transport_that_stays_in_its_process_is_refused_under_a_dispatcher_that_forks(dispatcher):
    class Here:
        kind, url, stays_in_process = "stream", "here://", True

        def open(self): ...

    for transport in (Here(), Layered(Here(), ProxyProtocol(("127.0.0.1",)))):
        with pytest.raises(IncompatibleError, match=r"serves only in the process that opens it, and (Forks|Prefork) serves in others"):
            Server(transport, Upper, dispatcher=dispatcher)
        assert Server(transport, Upper, dispatcher="thread").transports == (transport,)


def test_compose_builds_what_the_mapping_says():
    server = compose({"listen": "tcp://127.0.0.1:0", "handler": "json:dumps", "dispatcher": {"use": "fork", "max_children": 3}})
    assert server.dispatcher == Forks(3)


def test_explain_tells_each_part_its_supplier_and_which_options_are_defaults():
    told = str(Server(TCP("127.0.0.1", 0, backlog=9), Upper, dispatcher=Threads()).explain())
    assert "transport: TCP" in told
    assert "backlog = 9\n" in told
    assert "nodelay = True (default)" in told
    assert "dispatcher: Threads" in told
    assert "handler: Upper" in told


def test_explain_can_leave_out_the_options_that_are_defaults():
    told = str(Server(TCP("127.0.0.1", 0, backlog=9), Upper, dispatcher=Threads()).explain(defaults=False))
    assert "backlog = 9\n" in told
    assert "(default)" not in told
    assert "dispatcher: Threads" in told


# --- serving


def test_the_same_handler_runs_under_each_dispatcher(dispatcher):
    with Server(ANYWHERE, Upper, dispatcher=dispatcher) as server:
        server.start()
        assert ask(server.addresses[0]) == b"HELLO\n"


def test_one_server_has_many_listeners(tmp_path, dispatcher):
    def either(request, client_address, server):
        (echo if isinstance(request, tuple) else Upper)(request, client_address, server)

    places = [ANYWHERE, UDP("127.0.0.1", 0), UnixStream(str(tmp_path / "s")), TCP("::1", 0)]
    with Server(places, either, dispatcher=dispatcher) as server:
        server.start()
        tcp, udp, unix, tcp6 = server.addresses
        assert [ask(tcp), ask(unix), ask(tcp6)] == [b"HELLO\n"] * 3
        assert ask_datagram(udp, b"whole") == b"whole"
        assert server.stats().outcomes["finished"] == 4 or server.stop().stuck == ()
    assert server.stats().accepted == 4


def test_serve_forever_serves_in_the_calling_thread_and_returns_when_stopped(dispatcher):
    with Server(ANYWHERE, Upper, dispatcher=dispatcher, lifecycle=Graceful(drain=5)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert ask(server.addresses[0]) == b"HELLO\n"
        server.stop()
        thread.join(10)
        assert not thread.is_alive()
        assert server.state is State.STOPPED


def test_handle_request_serves_one(dispatcher):
    with Server(ANYWHERE, Upper, dispatcher=dispatcher) as server:
        answer = []
        client = threading.Thread(target=lambda: answer.append(ask(server.addresses[0])))
        client.start()
        server.handle_request()
        client.join()
        assert answer == [b"HELLO\n"]


def test_handle_request_gives_up_after_its_timeout():
    class Impatient(Server):
        timeout = 0.01
        gave_up = False

        def handle_timeout(self):
            self.gave_up = True

    with Impatient(ANYWHERE, Upper) as server:
        server.handle_request()
        assert server.gave_up


def test_a_stopped_server_serves_again():
    for lifecycle in (Graceful(drain=5), Classic()):
        server = Server(ANYWHERE, Upper, lifecycle=lifecycle)
        for _ in range(2):
            server.start()
            assert ask(server.addresses[0]) == b"HELLO\n"
            server.stop()
        server.server_close()


def test_serving_twice_at_once_is_refused():
    with Server(ANYWHERE, Upper) as server:
        server.start()
        with pytest.raises(AlreadyServingError):
            server.start()
        with pytest.raises(AlreadyServingError):
            server.serve_forever()
        assert ask(server.addresses[0]) == b"HELLO\n"


def test_the_second_listener_fails_and_the_first_is_closed_again(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path = tmp_path / "s"
        with pytest.raises(ListenError, match="in use; stop the program") as caught:
            Server([UnixStream(str(path)), TCP(*taken.getsockname())], Upper).start()
    assert caught.value.errno == errno.EADDRINUSE
    assert not path.exists()


def test_service_actions_is_called_in_the_serving_thread_when_overridden(dispatcher):
    class Paced(Server):
        def service_actions(self):
            callers.add(threading.current_thread())
            called.release()

    callers, called = set(), threading.Semaphore(0)
    with Paced(ANYWHERE, Upper, dispatcher=dispatcher) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        for _ in range(3):
            assert called.acquire(timeout=10)
            assert ask(server.addresses[0]) == b"HELLO\n"
        server.stop()
        thread.join()
    assert callers == {thread}


@pytest.mark.parametrize("dispatcher", ["pool:2", "adaptive:2", "executor,limit=2", "asyncio,workers=2"])
def test_service_actions_is_called_while_every_worker_is_busy(dispatcher):
    """Programs learn there that they should stop."""

    class Paced(Server):
        def service_actions(self):
            started.release()
            if all(busy.is_set() for busy in both):
                called.release()

    def handler(request, client_address, server):
        next(free).set()
        end.wait(20)

    both, end = (threading.Event(), threading.Event()), threading.Event()
    started, called = threading.Semaphore(0), threading.Semaphore(0)
    free = iter(both)
    with Paced(ANYWHERE, handler, dispatcher=dispatcher) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        assert started.acquire(timeout=10)
        with contextlib.ExitStack() as clients:
            for _ in both:
                clients.enter_context(socket.create_connection(server.addresses[0])).send(b"x")
            for _ in range(3):
                assert called.acquire(timeout=10)
            end.set()
        server.stop()
        thread.join()


# --- the template


def test_every_template_method_may_be_overridden(dispatcher):
    calls = []

    class Own(Server):
        def get_request(self):
            calls.append("get_request")
            return super().get_request()

        def verify_request(self, request, client_address):
            calls.append("verify_request")
            return True

        def process_request(self, request, client_address):
            calls.append("process_request")
            super().process_request(request, client_address)

        def finish_request(self, request, client_address):
            calls.append("finish_request")
            super().finish_request(request, client_address)

        def shutdown_request(self, request):
            calls.append("shutdown_request")
            super().shutdown_request(request)

        def close_request(self, request):
            calls.append("close_request")
            super().close_request(request)

    with Own(ANYWHERE, Upper, dispatcher=dispatcher, lifecycle=Graceful(drain=10)) as server:
        server.start()
        assert ask(server.addresses[0]) == b"HELLO\n"
        server.stop()
    steps = ["verify_request", "process_request", "finish_request", "shutdown_request", "close_request"]
    assert [call for call in calls if call != "get_request"] == steps
    assert "get_request" in calls


def test_an_overridden_get_request_serves_all_listeners():
    class Own(Server):
        def get_request(self):
            return super().get_request()

    with Own([ANYWHERE, ANYWHERE], Upper) as server:
        server.start()
        assert [ask(address) for address in server.addresses] == [b"HELLO\n"] * 2


def test_a_refused_request_is_closed_and_counted(dispatcher):
    class Picky(Server):
        def verify_request(self, request, client_address):
            return False

    with Picky(ANYWHERE, Upper, dispatcher=dispatcher) as server:
        server.start()
        with contextlib.suppress(ConnectionError):
            assert ask(server.addresses[0]) == b""
        server.stop()
        assert server.stats().outcomes == {"refused": 1}


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, RecursionError])
@pytest.mark.parametrize(
    "where", ["setup", "handle", "finish", "verify_request", "process_request", "finish_request", "handle_error", "close_request"]
)
def test_whatever_is_raised_wherever_costs_one_request(dispatcher, error, where, caplog):
    pending = [error("raised on purpose")]

    def fail_once():
        if pending:
            raise pending.pop()

    class Handler(Upper):
        pass

    class Fragile(Server):
        def handle_error(self, request, client_address):
            super().handle_error(request, client_address)

    target = Handler if where in {"setup", "handle", "finish"} else Fragile
    original = getattr(target, where)

    def failing(self, *args):
        result = original(self, *args)
        fail_once()
        return result

    setattr(target, where, failing)
    if where == "handle_error":
        Handler.handle = lambda self: (_ for _ in ()).throw(ValueError("first")) if pending else Upper.handle(self)
    with (
        caplog.at_level(logging.CRITICAL, "socketkit"),
        Fragile(ANYWHERE, Handler, dispatcher=dispatcher, lifecycle=Graceful(drain=10)) as server,
    ):
        server.start()
        with contextlib.suppress(ConnectionError):
            ask(server.addresses[0])
        assert ask(server.addresses[0]) == b"HELLO\n"
        server.stop()
        stats = server.stats()
    assert pending == []
    assert stats.active == 0
    assert stats.accepted == 2
    assert stats.outcomes["finished"] >= 1


def test_a_client_that_goes_away_is_no_error_in_the_log(caplog):
    inside, gone = threading.Event(), threading.Event()

    def reads_too_late(request, client_address, server):
        inside.set()
        gone.wait(10)
        request.recv(10)
        request.recv(10)

    with caplog.at_level(logging.INFO, "socketkit"), Server(ANYWHERE, reads_too_late, dispatcher=Threads()) as server:
        server.start()
        client = socket.create_connection(server.addresses[0])
        inside.wait(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        gone.set()
        server.stop()
        assert server.stats().outcomes == {"aborted": 1}
    assert caplog.text == ""


def test_layers_run_where_the_handler_runs_and_may_replace_the_request_and_the_peer():
    @attrs.frozen
    class Named:
        def wrap(self, request, client_address):
            threads.append(threading.current_thread())
            return request, request.recv(5).decode()

    threads = []

    def tell(request, client_address, server):
        request.sendall(client_address.encode() + b" " + request.recv(100))

    with Server(Layered(ANYWHERE, Named()), tell, dispatcher=Threads()) as server:
        server.start()
        assert ask(server.addresses[0], b"alicehello") == b"alice hello"
    assert threads[0] is not threading.main_thread()


def test_a_layer_that_refuses_ends_its_connection_only():
    @attrs.frozen
    class Guard:
        def wrap(self, request, client_address):
            if request.recv(1) != b"!":
                raise ValueError("no password")
            return request, client_address

    with Server(Layered(ANYWHERE, Guard()), Upper) as server:
        server.start()
        with contextlib.suppress(ConnectionError):
            assert ask(server.addresses[0]) == b""
        assert ask(server.addresses[0], b"!hello\n") == b"HELLO\n"
        server.stop()
        assert server.stats().outcomes == {"failed": 1, "finished": 1}


# --- stopping


def test_stop_before_start_makes_that_start_return_at_once_and_only_that():
    with contextlib.closing(_Closing(Server(ANYWHERE, Upper, lifecycle=Graceful(drain=5)))) as holder:
        server = holder.server
        assert server.stop() is None
        server.serve_forever()
        server.start()
        assert ask(server.addresses[0]) == b"HELLO\n"


@attrs.define
class _Closing:
    server: Server

    def close(self):
        self.server.server_close()


def test_stop_twice_and_from_many_threads_returns_the_same_report(dispatcher):
    with Server(ANYWHERE, Upper, dispatcher=dispatcher) as server:
        server.start()
        barrier, reports = threading.Barrier(20), []

        def stop():
            barrier.wait()
            reports.append(server.stop())

        threads = [threading.Thread(target=stop) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(reports) == 20
        assert len({id(report) for report in reports}) == 1
        server.start()
        assert ask(server.addresses[0]) == b"HELLO\n"


def test_a_handler_may_stop_its_own_server(dispatcher):
    def last_words(request, client_address, server):
        assert server.stop() is None
        request.sendall(b"stopping")

    with Server(ANYWHERE, last_words, dispatcher=dispatcher, lifecycle=Graceful(drain=10)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert ask(server.addresses[0], b"") == b"stopping"
        thread.join(10)
        assert not thread.is_alive()


def test_running_requests_may_finish_before_the_deadline():
    held = Held()
    with Server(ANYWHERE, held, dispatcher=Threads(), lifecycle=Graceful(drain=20)) as server:
        server.start()
        client = socket.create_connection(server.addresses[0])
        held.inside.acquire()
        server.stop(wait=False)
        held.leave.set()
        report = server.stop()
        client.close()
    assert (report.finished, report.forced, report.stuck) == (1, 0, ())


def test_at_the_deadline_blocked_handlers_are_woken(dispatcher):
    inside = threading.Event()

    def waits_for_a_silent_client(request, client_address, server):
        inside.set()
        assert request.recv(1) == b""

    with Server(ANYWHERE, waits_for_a_silent_client, dispatcher=dispatcher, lifecycle=Graceful(drain=0.05)) as server:
        server.start()
        client = socket.create_connection(server.addresses[0])
        inside.wait(10)
        report = server.stop()
        client.close()
    assert report.stuck == ()
    assert server.stats().outcomes == {"finished": 1}


def test_what_does_not_even_wake_is_reported_with_its_stack():
    held = Held()
    with Server(ANYWHERE, held, dispatcher=Threads(), lifecycle=Graceful(drain=0)) as server:
        server.start()
        client = socket.create_connection(server.addresses[0])
        held.inside.acquire()
        report = server.stop()
        held.leave.set()
        peer = client.getsockname()
        client.close()
    (stuck,) = report.stuck
    assert stuck.peer == peer
    assert "leave.wait" in stuck.stack


def test_stop_takes_a_shorter_drain_than_the_lifecycles():
    held = Held()
    with Server(ANYWHERE, held, dispatcher=Threads(), lifecycle=Graceful(drain=None)) as server:
        server.start()
        client = socket.create_connection(server.addresses[0])
        held.inside.acquire()
        report = server.stop(drain=0)
        held.leave.set()
        client.close()
    assert len(report.stuck) == 1


def test_after_a_stop_the_place_is_free(tmp_path):
    path = tmp_path / "s"
    with Server([ANYWHERE, UnixStream(str(path))], Upper) as server:
        server.start()
        address = server.addresses[0]
        server.stop()
        assert not path.exists()
        socket.create_server(address).close()


def test_a_listener_closed_under_the_loop_ends_it_with_the_error_and_without_a_spin():
    with Server(ANYWHERE, Upper, dispatcher=Sync()) as server:
        failures = []

        def serve():
            try:
                server.serve_forever()
            except (OSError, ValueError) as error:
                failures.append(error)

        thread = threading.Thread(target=serve)
        thread.start()
        assert ask(server.addresses[0]) == b"HELLO\n"
        listener = innards.listeners(server)[0].socket
        address = listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)  # makes accept fail for good, and wakes the loop
        thread.join(10)
        assert not thread.is_alive()
        assert len(failures) == 1
        assert server.state is State.FAILED
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(address)


def test_observers_see_a_whole_life():
    class Watcher:
        def __getattr__(self, event):
            if event.startswith("_"):
                raise AttributeError(event)
            return lambda *facts: seen.append(event)

    seen = []
    with Server(ANYWHERE, Upper, observers=[Watcher()], dispatcher=Sync()) as server:
        server.start()
        ask(server.addresses[0])
        server.stop()
    request = ["request_accepted", "handler_entered", "handler_left", "request_finished", "request_ended"]
    assert seen == ["server_started", *request, "server_stopping", "server_stopped"]


def test_a_system_without_threads_to_give_refuses_the_request_and_closes_cleanly(monkeypatch, caplog):
    with Server(ANYWHERE, Upper, dispatcher=Threads(), limits="first_byte=none,request=none") as server:  # or who keeps them is refused
        server.start()
        start = threading.Thread.start
        failures = [RuntimeError("can't start new thread")]

        def failing(thread):
            if failures and thread._target is not None and thread.name != "socketkit-timekeeper":
                raise failures.pop()
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", failing)
        with contextlib.suppress(ConnectionError):
            assert ask(server.addresses[0]) == b""
        assert ask(server.addresses[0]) == b"HELLO\n"
        server.stop()
        assert server.stats().outcomes == {"refused": 1, "finished": 1}
    assert "can't start new thread" in caplog.text


def test_stopping_an_idle_server_takes_no_poll_interval():
    import statistics
    import time

    times = []
    for _ in range(100):
        with Server(ANYWHERE, Upper, dispatcher=Sync()) as server:
            server.start()
            begin = time.perf_counter()
            server.stop()
            times.append(time.perf_counter() - begin)
    assert statistics.median(times) < 0.05


def test_a_start_that_was_stopped_before_binds_nothing():
    server = Server(ANYWHERE, Upper)
    server.stop()
    server.start()
    assert server.addresses == []
    assert server.state is State.STOPPED


def test_closing_a_server_that_never_served_does_not_stop_its_next_start():
    server = Server(ANYWHERE, Upper)
    with server:
        pass
    with server:
        server.start()
        assert ask(server.addresses[0]) == b"HELLO\n"


def test_a_start_that_fails_leaves_a_failed_server():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Server(TCP(*taken.getsockname()), Upper)
        for begin in (server.start, server.serve_forever):
            with pytest.raises(ListenError):
                begin()
            assert server.state is State.FAILED


@pytest.mark.parametrize("waited_for", [Threads(), Pool(2), Adaptive()], ids=lambda each: type(each).__name__)
def test_a_handler_that_waits_for_all_others_is_still_waited_for(waited_for):
    inside, leave = threading.Event(), threading.Event()

    def waits(request, client_address, server):
        innards.live(server).wait(0)
        inside.set()
        leave.wait(10)

    with Server(ANYWHERE, waits, dispatcher=waited_for, lifecycle=Graceful(drain=10)).start() as server:
        live = innards.live(server)
        with socket.create_connection(server.addresses[0], timeout=10) as client:
            client.sendall(b"x")
            assert inside.wait(10)
            server.stop(wait=False)
            while server.state is not State.DRAINING:  # by then the thread that serves has put it down whom to wait for
                time.sleep(0.001)
            assert not live.wait(0.05)
            leave.set()
            assert live.wait(10)
            assert client.recv(1) == b""


@pytest.mark.parametrize("lifecycle", [Graceful(drain=10), Classic()], ids=["graceful", "classic"])
def test_a_handler_may_close_its_own_server(dispatcher, lifecycle):
    def last_words(request, client_address, server):
        request.recv(1)
        server.server_close()
        request.sendall(b"closing")

    server = Server(ANYWHERE, last_words, dispatcher=dispatcher, lifecycle=lifecycle).start()
    address = server.addresses[0]
    assert ask(address, b"x")[:7] in {b"closing", b""}
    server.server_close()
    assert server.stats().outcomes == {"finished": 1}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_datagram_in_work_is_answered_although_its_server_drains(dispatcher):
    inside, leave = threading.Event(), threading.Event()

    def late(request, client_address, server):
        inside.set()
        leave.wait(10)
        request[1].sendto(b"late", client_address)

    if isinstance(dispatcher, Sync):
        leave.set()  # it drains only after its handler anyway
    with Server(UDP("127.0.0.1", 0), late, dispatcher=dispatcher, lifecycle=Graceful(drain=10)) as server:
        server.start()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"x", server.addresses[0])
            inside.wait(10)
            server.stop(wait=False)
            while not isinstance(dispatcher, Sync) and server.state is not State.DRAINING:
                pass
            leave.set()
            server.stop()
            assert client.recv(10) == b"late"
    assert server.stats().outcomes == {"finished": 1}
    assert server.addresses == []


@pytest.mark.parametrize("step", ["verify_request", "finish_request", "process_request", "process_request_thread"])
@pytest.mark.parametrize("where", ["class", "instance"])
@pytest.mark.parametrize("dispatcher", [Sync(), Threads(), Pool(2), Adaptive()], ids=lambda each: type(each).__name__)
def test_a_step_of_the_template_that_is_replaced_is_taken(step, where, dispatcher):
    taken = []

    def replacement(request, client_address):
        taken.append(step)
        return getattr(Server, step)(server, request, client_address)

    kind = type("Own", (Server,), {step: lambda _self, *facts: replacement(*facts)} if where == "class" else {})
    with kind(ANYWHERE, Upper, dispatcher=dispatcher) as server:
        server.start()
        if where == "instance":
            setattr(server, step, replacement)
        assert talk(server.addresses[0], b"hello\n") == b"HELLO\n"
    assert taken == [step]


@pytest.mark.parametrize("end", ["sys.exit(0)", "server.stop()", "server.stop(drain=0)", "server.server_close()"])
def test_a_process_that_the_program_forks_ends_without_waiting_for_its_parents_server_and_without_harm_to_it(end):
    program = f"""
import faulthandler, os, signal, socket, sys
from socketkit import Server
faulthandler.cancel_dump_traceback_later()  # its thread is not in the child, which would wait for it at its end
signal.alarm(20)

def echo(request, client_address, server):
    while data := request.recv(9):
        request.sendall(data)

server = Server("tcp://127.0.0.1:0", echo).start()
client = socket.create_connection(server.addresses[0], 10)
client.sendall(b"one")
assert client.recv(9) == b"one"
pid = os.fork()
if pid == 0:
    signal.alarm(10)
    {end}
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
client.sendall(b"two")
assert client.recv(9) == b"two"
client.close()
assert server.stop().forced == 0
"""
    python(program)
