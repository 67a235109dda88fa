"""Every built-in part keeps the promises of its seam, as the kit for authors of plugins checks them."""

import contextlib
import functools
import logging
import os
import re
import socket
import ssl
import sys
import threading
import unittest
from contextvars import ContextVar
from pathlib import Path

import pytest

from helpers.support import python
from socketkit import (
    TCP,
    TLS,
    UDP,
    Adaptive,
    Asyncio,
    Classic,
    Executor,
    Graceful,
    InheritedFD,
    Memory,
    Pool,
    ProxyProtocol,
    Sync,
    Threads,
    UnixDatagram,
    UnixStream,
)
from socketkit.composition import builtin
from socketkit.testing import certificates
from socketkit.testing.conformance import (
    DispatcherConformance,
    LayerConformance,
    LifecycleConformance,
    ObserverConformance,
    TransportConformance,
    check_dispatcher,
    check_layer,
    check_lifecycle,
    check_observers,
    check_transport,
)
from socketkit.testing.conformance.commands import AsyncCommands
from socketkit.testing.programs import run


@pytest.fixture(autouse=True)
def quiet():
    """Show nobody what the checks provoke on purpose."""
    handler = logging.NullHandler()
    logging.getLogger("socketkit").addHandler(handler)
    yield
    logging.getLogger("socketkit").removeHandler(handler)


# --- as functions ----------------------------------------------------------------------------------------------------


def several():
    """Return a place with two addresses, if this machine has IPv6."""
    return TCP("*", 0, v6only=True)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(TCP, "127.0.0.1", 0),
        functools.partial(TCP, "127.0.0.1", 0, reuse_port=True),
        several,
        functools.partial(UDP, "127.0.0.1", 0),
        functools.partial(UDP, "127.0.0.1", 0, max_packet_size=100),
        functools.partial(UDP, "", 0),
        functools.partial(UnixStream, "@socketkit of the tests"),
        functools.partial(UnixDatagram, "@socketkit of the tests"),
        Memory,
        functools.partial(Memory, "a name"),
    ],
    ids=lambda make: repr(make()).partition(", backlog")[0],
)
def test_a_transport_of_ours_keeps_its_promises(make):
    assert not check_transport(make).broken


@pytest.mark.parametrize("kind", [UnixStream, UnixDatagram])
def test_a_unix_socket_at_a_path_keeps_its_promises(kind, tmp_path):
    report = check_transport(lambda: kind(f"{tmp_path}/socket"))
    assert "A closed listener leaves no path behind." in [each.promise for each in report.findings if each.result == "kept"]


def greet_as_proxy(sock):
    sock.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443\r\n")
    return sock


def test_proxy_keeps_its_promises():
    assert not check_layer(lambda: ProxyProtocol(["127.0.0.0/8"]), greet_as_proxy).broken


def test_tls_keeps_its_promises():
    cert, key = certificates.certificate()
    context = ssl.create_default_context(cafile=certificates.authority("Authority"))
    assert not check_layer(lambda: TLS(cert=cert, key=key), lambda sock: context.wrap_socket(sock, server_hostname="localhost")).broken


@pytest.mark.parametrize(
    "make",
    [
        Sync,
        Threads,
        Pool,
        functools.partial(Pool, 2),
        functools.partial(Pool, 4, overflow="shed", connections=60),
        Adaptive,
        functools.partial(Adaptive, 2),
        Asyncio,
        Executor,
        lambda: Executor().daemonized(),
    ],
    ids=lambda make: repr(make()).partition(", defer")[0],
)
def test_a_dispatcher_of_ours_keeps_its_promises(make):
    assert not check_dispatcher(make).broken


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "recipe", ["Forks()", "Forks(2)", "Prefork(2)", "Prefork(1, Sync())", "Prefork(2, Forks())", "Prefork(2, Asyncio())"]
)
def test_a_dispatcher_of_ours_that_forks_keeps_its_promises(recipe):
    checked = python(
        f"""
import logging
from socketkit import Asyncio, Forks, Prefork, Sync
from socketkit.testing.conformance import check_dispatcher
logging.getLogger("socketkit").addHandler(logging.NullHandler())
print(check_dispatcher(lambda: {recipe}).summary)
"""
    )
    assert "promises kept" in checked.stdout


@pytest.mark.skipif(sys.version_info < (3, 14), reason="needs Python 3.14, which has interpreters")
@pytest.mark.parametrize("recipe", ["Interpreters(2)", "Interpreters(1, Asyncio())", "Interpreters(2, Sync())"])
@pytest.mark.timeout(300)
def test_a_dispatcher_of_ours_in_other_interpreters_keeps_its_promises(recipe):
    checked = python(
        f"""
import logging
from socketkit import Asyncio, Interpreters, Sync
from socketkit.testing.conformance import DispatcherConformance
from socketkit.testing.conformance.promises import check
logging.getLogger("socketkit").addHandler(logging.NullHandler())
class Patient(DispatcherConformance):
    patience = 30.0  # interpreters need seconds to start on a busy machine
print(check(Patient, lambda: {recipe}).summary)
""",
        guard=280,
    )
    assert "promises kept" in checked.stdout


class TestAsyncioAwaits(DispatcherConformance):
    commands = AsyncCommands

    def make(self):
        return Asyncio()


def test_handlers_of_another_library_are_not_awaited():
    class Other(AsyncCommands):
        async_library = "trio"

    class Checks(DispatcherConformance):
        async_commands = Other

        def make(self):
            return Asyncio()

    with pytest.raises(unittest.SkipTest, match="it awaits handlers of asyncio, and async_commands is one of trio"):
        Checks().test_async()


@pytest.mark.timeout(180)  # it starts two processes for each check
def test_a_dispatcher_that_takes_only_messages_is_checked_with_messages():
    checked = python(
        """
import functools, logging, multiprocessing
from concurrent.futures import ProcessPoolExecutor
from socketkit import Executor
from socketkit.testing.conformance import check_dispatcher
logging.getLogger("socketkit").addHandler(logging.NullHandler())
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["socketkit.testing.conformance"])  # imported once, not by each process of each check
factory = functools.partial(ProcessPoolExecutor, 2, mp_context=context)
report = check_dispatcher(lambda: Executor(factory))
print({each.check for each in report.findings if each.result == "kept"} >= {"test_answers", "test_conversation", "test_datagrams"})
""",
        guard=150,
    )
    assert checked.stdout == "True\n"


@pytest.mark.parametrize("make", [Classic, Graceful], ids=lambda make: make.__name__)
def test_a_lifecycle_of_ours_keeps_its_promises(make):
    assert not check_lifecycle(make).broken


class Failures:
    """Counts what goes wrong, by kind."""

    def __init__(self):
        self._lock = threading.Lock()
        self.counts = {}

    def request_failed(self, server, client_address, error):
        with self._lock:
            self.counts[type(error)] = self.counts.get(type(error), 0) + 1

    def request_refused(self, server, client_address, reason):
        with self._lock:
            self.counts[reason] = self.counts.get(reason, 0) + 1


def test_an_observer_keeps_its_promises():
    assert not check_observers(Failures).broken


def test_what_an_observer_stores_in_its_context_does_not_stay():
    stored = ContextVar("stored", default=0)

    class Stores:
        def handler_entered(self, server, request, client_address, seconds):
            stored.set(stored.get() + 1)

    assert not check_observers(Stores).broken
    assert stored.get() == 0


# --- as classes ------------------------------------------------------------------------------------------------------


class TestTCP(TransportConformance):
    def make(self):
        return TCP("127.0.0.1", 0)


class TestInheritedFD(TransportConformance):
    """A socket that the process was given serves one listener, so each test has one of its own."""

    opens_once = True

    @pytest.fixture(autouse=True)
    def socket_of_its_own(self):
        self.number = socket.create_server(("127.0.0.1", 0)).detach()
        yield
        with contextlib.suppress(OSError):  # the listener has closed it
            os.close(self.number)

    def make(self):
        return InheritedFD(self.number)


OF_A_MANAGER = """
import itertools, os, socket
os.environ["LISTEN_PID"], checks = str(os.getpid()), 40
taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(checks)]
for number, sock in enumerate(taken):  # first above all others, because the descriptors may overlap
    os.dup2(sock.fileno(), 100 + number)
for number, sock in enumerate(taken):
    sock.close()
for number in range(checks):
    os.dup2(100 + number, 3 + number)
    os.close(100 + number)
os.environ.update(LISTEN_FDS=str(checks), LISTEN_FDNAMES=":".join(f"web{number}" for number in range(checks)))

from socketkit import Systemd
from socketkit.testing.conformance import TransportConformance
from socketkit.testing.conformance.promises import find

numbers = itertools.count()

class OfAManager(TransportConformance):
    opens_once = True
    def __init__(self):
        self.name = f"web{next(numbers)}"
    def make(self):
        return Systemd(self.name)

for name in OfAManager.promises():
    found = find(getattr(OfAManager(), name))
    print(found.result)
    assert found.result != "broken", found
"""


def test_a_socket_of_the_service_manager_keeps_its_promises():
    assert python(OF_A_MANAGER).stdout.split().count("kept") > 10


def test_a_transports_clients_may_be_more_than_sockets_that_connect():
    connected = []

    def connect(address):
        connected.append(address)
        return socket.create_connection(address)

    assert not check_transport(functools.partial(TCP, "127.0.0.1", 0), connect, only="test_served").broken
    assert connected


def test_every_part_of_ours_is_checked():
    checks = Path(__file__).read_text().partition("# --- as functions")[2]
    parts = {
        **builtin.socketkit_transports(),
        **builtin.socketkit_layers(),
        **builtin.socketkit_dispatchers(),
        **builtin.socketkit_lifecycles(),
    }
    assert [name for name, recipe in parts.items() if not re.search(rf"\b{recipe.__name__}\b", checks)] == []


class TestProxyProtocol(LayerConformance):
    def make(self):
        return ProxyProtocol(["127.0.0.0/8"])

    def client(self, sock):
        return greet_as_proxy(sock)


class TestPool(DispatcherConformance):
    def make(self):
        return Pool(4)


class TestGraceful(LifecycleConformance):
    def make(self):
        return Graceful()


class TestFailures(ObserverConformance):
    def make(self):
        return Failures()


CLASSES = """
import logging

from socketkit import Forks, Prefork
from socketkit.testing.conformance import DispatcherConformance

logging.getLogger("socketkit").addHandler(logging.NullHandler())


class TestForks(DispatcherConformance):
    def make(self):
        return Forks()


class TestPrefork(DispatcherConformance):
    def make(self):
        return Prefork(2)


class TestBroken(DispatcherConformance):
    def make(self):
        return Broken()


class Broken:
    def start(self, work):
        raise OSError("there is no room")
"""


def test_beside_the_check_for_leftovers_the_classes_report_only_broken_promises(tmp_path):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["socketkit.testing.pytest_plugin"]')
    (tmp_path / "test_parts.py").write_text(CLASSES)
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=line", "-W", "error")
    output = run(sys.executable, "-m", "pytest", *options, "-k", "not Broken", guard=50, cwd=tmp_path).stdout
    assert "left behind" not in output
    output = run(sys.executable, "-m", "pytest", *options, "-k", "Broken and (shape or recipe)", code=1, cwd=tmp_path).stdout
    assert "BrokenPromiseError: Broken is no attrs class; decorate it with @attrs.frozen" in output
    assert "OSError: there is no room" in output
    assert "left behind" not in output
