"""The fixtures of the pytest plugin: servers and clients, every dispatcher, every transport, and the dispatcher that takes steps."""

import re
import sys

import pytest

from helpers import snippets
from helpers.support import ROOT
from socketkit import ConversationHandler, DatagramRequestHandler, Memory, StreamRequestHandler, Threads
from socketkit.composition.catalog import Catalog
from socketkit.errors import IncompatibleError
from socketkit.testing import FakeClock, Stepping
from socketkit.testing.conformance import check_dispatcher
from socketkit.testing.programs import run, with_path


class Upper(StreamRequestHandler):
    """Answers lines in upper case."""

    request_kinds = frozenset({"stream"})

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class UpperDatagram(DatagramRequestHandler):
    """The same with datagrams."""

    def handle(self):
        self.wfile.write(self.rfile.read().upper())


class Lines(ConversationHandler):
    """The same as a conversation."""

    def handle_one_request(self):
        self.wfile.write(self.rfile.readline().upper())


# --- servers and clients ------------------------------------------------------------------------------------------------


def test_a_handler_is_served_at_an_address_to_clients_that_nobody_has_to_close(serve):
    served = serve(Upper)
    assert served.address[0] == "127.0.0.1"
    assert served.url == f"tcp://127.0.0.1:{served.address[1]}"
    for client in (served.client(), served.client(timeout=5)):
        client.sendall(b"one\n")
        assert client.recv(10) == b"ONE\n"
    assert client.gettimeout() == 5


def test_several_servers_are_served_at_once_each_with_its_own_parts(serve):
    first, second = serve(Upper, dispatcher=Threads()), serve(Upper, transport=Memory(), dispatcher="pool:2")
    for served in (first, second):
        client = served.client()
        client.sendall(b"one\n")
        assert client.recv(10) == b"ONE\n"
    assert second.url.startswith("memory://")


def test_parts_that_do_not_fit_are_an_error_where_the_test_has_chosen_them(serve):
    with pytest.raises(IncompatibleError):
        serve(Upper, transport="udp://127.0.0.1:0")


def test_every_dispatcher_serves(serve, every_dispatcher):
    client = serve(Upper, dispatcher=every_dispatcher).client()
    client.sendall(b"one\n")
    assert client.recv(10) == b"ONE\n"


@pytest.mark.parametrize("handler", [Upper, UpperDatagram])
def test_every_transport_serves_the_handlers_of_its_kind(serve, every_transport, handler):
    client = serve(handler, transport=every_transport).client()
    client.sendall(b"one\n")
    assert client.recv(10) == b"ONE\n"


def test_a_test_runs_for_each_of_both_and_says_for_which(tmp_path):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["socketkit.testing.pytest_plugin"]\n')
    (tmp_path / "test_them.py").write_text("def test_it(every_dispatcher, every_transport): pass\n")
    listed = run(sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", str(tmp_path)).stdout
    for dispatcher in ("sync", "thread", "fork", "pool", "adaptive", "prefork", "asyncio", "executor"):
        for transport in ("tcp", "udp", "unix", "unix-dgram", "memory"):
            assert f"test_it[{dispatcher}-{transport}]" in listed or f"test_it[{transport}-{dispatcher}]" in listed


@pytest.mark.timeout(120)
def test_the_tests_of_the_guide_pass_as_they_stand_there(tmp_path):
    snippets.save(ROOT / "docs/how-to/test-step-by-step.md", tmp_path)
    said = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", guard=100, cwd=tmp_path, env=with_path(tmp_path)).stdout
    assert "failed" not in said
    passed, skipped = (int(re.search(rf"(\d+) {word}", said)[1]) for word in ("passed", "skipped"))
    dispatchers = len(Catalog.load().offers("dispatcher"))  # one that a plugin has installed may refuse the handler
    assert passed + skipped == dispatchers + 8
    assert skipped >= 2


# --- steps ----------------------------------------------------------------------------------------------------------------


def test_a_request_runs_when_it_is_told_to_and_not_before(serve):
    stepping = Stepping()
    served = serve(Lines, transport=Memory(), dispatcher=stepping)
    first, second = served.client(), served.client()
    for client in (first, second):
        client.sendall(b"one\n")
    first.settimeout(0)
    with pytest.raises(BlockingIOError):
        first.recv(10)
    assert stepping.step()
    assert first.recv(10) == b"ONE\n"
    assert stepping.step()
    assert second.recv(10) == b"ONE\n"
    assert not stepping.step()


def test_the_requests_of_a_conversation_are_steps_of_their_own_and_time_is_what_the_clock_says(serve):
    stepping, clock = Stepping(), FakeClock()
    served = serve(Lines, transport=Memory(), dispatcher=stepping, clock=clock)
    client = served.client()
    for line in (b"one\n", b"two\n"):
        client.sendall(line)
        assert stepping.step()
        assert client.recv(10) == line.upper()
    assert not stepping.step()
    clock.advance(76)
    assert stepping.step()  # it has been idle for too long
    assert client.recv(10) == b""
    assert served.server.stats().outcomes == {"finished": 1}


def test_a_handler_that_waits_for_somebody_is_told_of(serve, monkeypatch):
    monkeypatch.setattr("socketkit.testing.stepping.PATIENCE", 0.1)
    stepping = Stepping()
    client = serve(Upper, transport=Memory(), dispatcher=stepping).client()
    client.sendall(b"no end of the line")
    with pytest.raises(TimeoutError, match="does the handler wait for somebody"):
        stepping.step()


def test_a_step_that_was_given_up_is_not_taken_later(serve, monkeypatch):
    stepping = Stepping()
    with monkeypatch.context() as patched:
        patched.setattr("socketkit.testing.stepping.PATIENCE", 0.01)
        with pytest.raises(TimeoutError, match="does the server serve"):
            stepping.step()
    client = serve(Lines, transport=Memory(), dispatcher=stepping).client()
    client.sendall(b"one\n")
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(10)
    assert stepping.step()
    assert client.recv(10) == b"ONE\n"


def test_an_error_of_a_handler_ends_its_step_and_not_the_server(serve):
    def fails(request, client_address, server):
        request.recv(10)  # what is left unread resets the connection
        raise RuntimeError("on purpose")

    stepping = Stepping()
    served = serve(fails, transport=Memory(), dispatcher=stepping)
    for _ in range(2):
        client = served.client()
        client.sendall(b"x")
        assert stepping.step()
        assert client.recv(1) == b""
    assert served.server.stats().outcomes == {"failed": 2}


def test_what_is_left_runs_in_a_drain_without_being_told_to(serve):
    served = serve(Lines, transport=Memory(), dispatcher=Stepping())
    client = served.client()
    client.sendall(b"one\n")
    served.server.stop()
    assert client.recv(10) == b"ONE\n"


def test_it_is_a_dispatcher_like_others_but_for_what_needs_no_steps():
    for name in ("test_recipe", "test_holds_nothing", "test_shape", "test_idle_wait", "test_parking"):
        check_dispatcher(Stepping, only=name)
