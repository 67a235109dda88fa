"""`interpreters`: other interpreters of this process serve, each with its own lock."""

import contextlib
import functools
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import types

import pytest

from helpers.interpreted import Back, Breaks, Special, Tied, Watching, Words
from helpers.support import SERVE, TESTS, python
from socketkit import Adaptive, Asyncio, Forks, Graceful, Interpreters, Limits, Memory, Prefork, Server, Sync, Threads
from socketkit.errors import BootError, IncompatibleError
from socketkit.seams import State
from socketkit.testing import certificates
from socketkit.testing.clients import address, ask, connect
from socketkit.testing.programs import Program, wait_until, with_path

pytestmark = pytest.mark.timeout(120)  # each interpreter imports socketkit anew, which takes seconds on a busy machine

served = pytest.mark.skipif(sys.version_info < (3, 14), reason="Python has interpreters since 3.14")


class Client:
    """A client of `Words`, which says line by line what it wants."""

    def __init__(self, server):
        self._socket = socket.create_connection(server.addresses[0], timeout=60)
        self._lines = self._socket.makefile("rb")
        self.process, self.interpreter = map(int, self._line().split())

    def _line(self):
        return self._lines.readline().decode().rstrip("\n")

    def __call__(self, words):
        self._socket.sendall(words.encode() + b"\n")
        return self._line()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        self._lines.close()
        self._socket.close()


@contextlib.contextmanager
def serving(handler=Words, transport="tcp://127.0.0.1:0", *, kind=Server, dispatcher="interpreters:2", drain=60, **parts):
    with kind(transport, handler, dispatcher=dispatcher, lifecycle=Graceful(drain=drain), **parts) as server:
        yield server.start()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python has interpreters")
def test_an_older_python_is_told_which_one_it_needs():
    with pytest.raises(IncompatibleError, match=r"Interpreters needs Python 3\.14 or later, which this platform"):
        Server("tcp://127.0.0.1:0", Words, dispatcher="interpreters:2")


@pytest.mark.parametrize("inner", [Forks(), Prefork(2), Interpreters(2)])
def test_what_is_inside_may_not_fork_and_is_no_other_interpreters(inner):
    with pytest.raises(ValueError, match="inner must be a dispatcher with threads or an event loop, such as adaptive"):
        Interpreters(2, inner)


def test_a_handler_that_no_module_has_is_refused_with_the_remedy():
    class Local(Words):
        pass

    main = type("Main", (Words,), {"__module__": "__main__"})
    for handler, why in (
        (Local, "it is no name of the module"),
        (lambda *_: None, "it is no name"),
        (main, "from the program's main file"),
    ):
        with pytest.raises(IncompatibleError, match=rf"cannot import .* {why}.*module.*, or use prefork"):
            Interpreters(2).check(handler)
    Interpreters(2).check(Words)


def test_a_handler_whose_module_was_loaded_from_a_file_off_the_path_is_refused_with_the_remedy(monkeypatch):
    module = types.ModuleType("nowhere_else.handlers")
    exec("class Handler: pass", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(IncompatibleError, match=r"its module nowhere_else\.handlers is not on sys\.path; add the folder"):
        Interpreters(2).check(module.Handler)


def test_the_inner_dispatcher_looks_at_the_handler_too():
    class Picky(Threads):
        def check(self, handler):
            raise IncompatibleError("Picky", "dislikes it", "look elsewhere")

    with pytest.raises(IncompatibleError, match="dislikes it"):
        Interpreters(2, Picky()).check(Words)


@served
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda server: setattr(server, "lock", threading.Lock()), "Server cannot copy its attribute lock into another interpreter"),
        (lambda server: setattr(server, "RequestHandlerClass", functools.partial(Words, threading.Lock())), "cannot copy its handler"),
    ],
)
def test_what_cannot_be_copied_is_named_when_the_server_starts(change, why):
    server = Server("tcp://127.0.0.1:0", Words, dispatcher="interpreters:1")
    change(server)
    with server, pytest.raises(IncompatibleError, match=f"{why}.*prefork"):
        server.start()


@served
def test_a_transport_without_a_descriptor_is_refused():
    with (
        Server(Memory(), Words, dispatcher="interpreters:1") as server,
        pytest.raises(IncompatibleError, match=r"memory://.*cannot be copied"),
    ):
        server.start()


@served
def test_a_module_that_does_not_load_there_is_named_and_not_tried_again():
    with Server("tcp://127.0.0.1:0", "helpers.unloadable:Edited", dispatcher="interpreters:2") as server:
        with pytest.raises(BootError, match="module readline does not support loading in subinterpreters"):
            server.serve_forever()
        assert server.state is State.FAILED


@served
def test_a_classic_server_is_refused_with_the_remedy():
    body = """
from socketkit import socketserver
from socketkit.composition import config
from helpers.interpreted import Words

socketserver._Override.choose(config.dispatcher("interpreters:2"))
try:
    socketserver.TCPServer(("127.0.0.1", 0), Words).serve_forever()
except TypeError as error:
    print(error)
"""
    assert python(body).stdout == (
        "TCPServer cannot be copied into another interpreter, because it is not composed of parts; "
        "compose a socketkit.Server, or use prefork\n"
    )


# --- serving -----------------------------------------------------------------------------------------------------------


@served
@pytest.mark.parametrize("inner", [None, Sync(), Threads(), Adaptive(4)])
def test_all_interpreters_of_one_process_serve(inner):
    with serving(dispatcher=Interpreters(2, inner)) as server, contextlib.ExitStack() as clients:
        seen = set()

        def all_have_served():
            client = clients.enter_context(Client(server)) if inner is None else Client(server)
            seen.add(client.interpreter)
            assert client.process == os.getpid()
            assert client("echo hello") == "hello"
            client.close()
            return len(seen) == 2

        wait_until(all_have_served, 60)


@served
def test_an_event_loop_may_be_inside():
    with serving(dispatcher=Interpreters(1, Asyncio())) as server, Client(server) as client:
        assert client("echo hello") == "hello"


@served
def test_datagrams_and_unix_sockets_are_served(tmp_path):
    place = str(tmp_path / "s")
    with serving(Back, "udp://127.0.0.1:0") as server:
        assert ask(server.addresses[0], b"abc", 60) == b"cba"
    with serving(transport=f"unix://{place}") as server, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(place)
        assert client.recv(100).startswith(b"%d " % os.getpid())
    assert not os.path.exists(place)


@served
def test_connections_are_encrypted_there():
    cert, key = certificates.certificate()
    trusting = ssl.create_default_context(cafile=certificates.authority())
    with serving(transport=f"tls://127.0.0.1:0?tls.cert={cert}&tls.key={key}", dispatcher="interpreters:1") as server:
        plain = socket.create_connection(server.addresses[0], timeout=60)
        with trusting.wrap_socket(plain, server_hostname="localhost") as client:
            assert client.recv(100).startswith(b"%d " % os.getpid())


@served
def test_counts_cover_all_interpreters_and_outlive_them():
    with serving() as server:
        for _ in range(6):
            with Client(server) as client:
                client("echo hello")
        with Client(server) as client:
            client("no_such_word")
        wait_until(lambda: server.stats().active == 0, 60)
        assert server.stats().outcomes == {"finished": 6, "failed": 1}
        server.stop()
        assert server.stats().outcomes == {"finished": 6, "failed": 1}


@served
def test_each_interpreter_has_its_share_of_the_limits():
    with serving(dispatcher="interpreters:2", limits=Limits(max_connections=10, rate=8.0)) as server, Client(server) as client:
        assert client("limit max_connections") == "5"
        assert client("limit rate") == "4.0"


# --- the copy of the server ----------------------------------------------------------------------------------------------


@served
def test_a_subclass_of_server_is_copied_with_its_attributes_and_without_its_constructor():
    server = Special("tcp://127.0.0.1:0", Words, dispatcher="interpreters:1", greeting=f"{os.getpid()} 1\n")
    server.settings = {"answer": 42}
    with server:
        server.start()
        with Client(server) as client:
            assert client("echo hello").startswith(f"{os.getpid()} ")  # what the handler says first, after the greeting
            assert client("echo more") == "hello"
            assert client("echo last") == "more"
            assert client("kind") == "last"
            assert client("attribute settings") == "Special"
            assert client("echo over") == "{'answer': 42}"


@served
def test_a_handler_may_have_arguments_and_imports_from_where_the_program_does(monkeypatch, tmp_path):
    (tmp_path / "only_here.py").write_text("from helpers.interpreted import Words\nclass Here(Words):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with serving("only_here:Here", dispatcher="interpreters:1") as server, Client(server) as client:
        assert client("path") == str(tmp_path)


@served
def test_what_is_logged_there_reaches_the_programs_handlers_at_the_programs_levels(caplog):
    caplog.set_level(logging.WARNING, logger="app")
    with serving(dispatcher="interpreters:1") as server:
        with Client(server) as client:
            assert [client(f"log {level}") for level in (logging.INFO, logging.WARNING)] == ["said", "said"]
            client("no_such_word")
        wait_until(lambda: server.stats().outcomes.get("failed"), 60)
    assert [record.getMessage() for record in caplog.records if record.name == "app"] == [f"said at {logging.WARNING}"]
    [failure] = [record.getMessage() for record in caplog.records if record.name == "socketkit.server"]
    assert "AttributeError: 'Words' object has no attribute 'no_such_word'" in failure


@served
def test_observers_are_copied_and_one_that_cannot_be_is_warned_of(tmp_path, caplog):
    marks, nothing = tmp_path / "marks", tmp_path / "nothing"
    with serving(dispatcher="interpreters:1", observers=[Watching(str(marks)), Tied(str(nothing))]) as server:
        with Client(server) as client:
            interpreter = client.interpreter
        wait_until(lambda: marks.exists() and marks.read_text() == f"{interpreter} finished\n", 60)
    assert not nothing.exists()
    assert "is not told of the requests of" in caplog.text


# --- ending and replacing ------------------------------------------------------------------------------------------------


@served
def test_a_drain_lets_requests_finish_and_leaves_nothing():
    threads = threading.active_count()
    with serving() as server:
        with Client(server) as client:
            client("echo hello")
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            wait_until(lambda: server.state is State.DRAINING, 60)
            assert client("echo again") == "again"
        stopping.join(60)
        assert server.state is State.STOPPED
        assert server.stats().outcomes == {"finished": 1}
    wait_until(lambda: threading.active_count() == threads, 60)


@served
def test_a_handler_may_stop_the_whole_server():
    with serving() as server:
        with Client(server) as client:
            assert client("stop") == "stopping"
        wait_until(lambda: server.state is State.STOPPED, 60)


@served
@pytest.mark.leaves("threads", "descriptors", reason="nothing ends an interpreter whose handler never returns")
def test_a_handler_that_never_returns_is_given_up_and_the_server_serves_again(caplog):
    with serving(dispatcher="interpreters:1", drain=0.5) as server:
        place = server.addresses[0]
        with Client(server) as client:
            assert client("stick") == "stuck"
            server.stop()
        assert server.stats().outcomes == {"died": 1}
        assert "did not end in time, and its requests go on, because nothing can end them" in caplog.text
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(place, timeout=60)
        server.start()
        with Client(server) as client:
            assert client("echo again") == "again"


GOES_ON = """
import atexit, os, socket, sys
from socketkit import Server
from helpers.interpreted import Words

class Freed:
    def __del__(self):
        os.write(1, b"Python freed the objects, and the interpreters before them\\n")

freed = Freed()
atexit.register(print, "first exit function")
server = Server("tcp://127.0.0.1:0", Words, dispatcher="interpreters:1", lifecycle="graceful:drain=0.5").start()
atexit.register(print, "last exit function")
client = socket.create_connection(server.addresses[0])
lines = client.makefile()
lines.readline()
client.sendall(b"%s\\n")
print(lines.readline(), end="", flush=True)
client.close()
%s
print("written to a buffer, ", end="")
"""


@served
@pytest.mark.parametrize(("word", "answer"), [("stick", "stuck"), ("spin", "spinning")])
def test_a_program_ends_although_a_handler_goes_on(word, answer):
    program = python(GOES_ON % (word, "server.stop()"), guard=60)
    assert program.stdout == f"{answer}\nwritten to a buffer, last exit function\nfirst exit function\n"


@served
@pytest.mark.parametrize(
    ("end", "code", "errors"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no more')", 1, "no more\n"),
        ("raise ValueError('no more')", 1, "ValueError: no more\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("try: sys.exit(3)\nexcept SystemExit: pass", 0, ""),
    ],
)
def test_a_program_ends_as_it_would_although_a_handler_goes_on(end, code, errors):
    program = python(GOES_ON % ("spin", end), guard=60, code=code)
    assert program.stdout.endswith("last exit function\nfirst exit function\n")
    assert errors in program.stderr


@served
def test_an_interpreter_that_has_had_its_share_is_replaced_and_no_request_is_lost(caplog):
    caplog.set_level(logging.INFO, logger="socketkit.dispatchers.interpreters")
    seen, count = set(), 0
    with serving(dispatcher=Interpreters(1, max_requests=5, jitter=0)) as server:

        def three_have_served():
            nonlocal count
            with Client(server) as client:
                assert client("echo hello") == "hello"
                seen.add(client.interpreter)
            count += 1
            return len(seen) >= 3

        wait_until(three_have_served, 100)
        wait_until(lambda: server.stats().active == 0, 60)
        assert server.stats().outcomes == {"finished": count}
    assert "has left; it had served" in caplog.text


@served
def test_a_worker_that_fails_is_replaced(caplog):
    with serving(dispatcher=Interpreters(1, Breaks(2))) as server:
        interpreters = set()

        def another_serves():
            with contextlib.suppress(OSError, ValueError), Client(server) as client:  # the worker may fail under it
                interpreters.add(client.interpreter)
            return len(interpreters) > 1

        wait_until(another_serves, 100)
    assert "died: MemoryError: asked for" in caplog.text


@served
def test_workers_that_cannot_boot_end_the_server():
    threads = threading.active_count()
    with Server("tcp://127.0.0.1:0", Words, dispatcher=Interpreters(1, boot_timeout=0.001, boots=2)) as server:
        with pytest.raises(BootError, match=r"2 workers in a row ended before they were ready, the last: it was not ready within 0.001 s"):
            server.serve_forever()
    wait_until(lambda: threading.active_count() == threads, 60)  # given up while they began, they end on their own


@served
def test_a_server_starts_again_with_the_same_recipe():
    with serving(dispatcher="interpreters:1") as server:
        for _ in range(3):
            with Client(server) as client:
                assert client("echo hello") == "hello"
            server.stop()
            server.start()
        assert server.stats().outcomes == {"finished": 3}


@served
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_with_it_and_ends_at_a_signal(number):
    command = (*SERVE, "helpers.interpreted:Words", "--listen", "tcp://127.0.0.1:0", "--dispatcher", "interpreters:2")
    with Program(*command, env=with_path(TESTS)) as program:
        [url] = program.serving()
        with connect(address(url), "stream", 60) as client:
            assert client.recv(100).startswith(b"%d " % program.pid)
        program.send_signal(number)
        assert program.wait(60) == 0
