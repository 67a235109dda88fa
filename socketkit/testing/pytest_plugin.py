"""A pytest plugin: servers for tests, every dispatcher and transport as a parameter, and a check that no test leaves anything behind.

Enable it in ``pyproject.toml``, in the table ``[tool.pytest.ini_options]``, with ``addopts = ["-p", "socketkit.testing.pytest_plugin"]``.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from socketkit.catalog import Catalog
from socketkit.composition.capabilities import missing
from socketkit.errors import ConfigError, IncompatibleError
from socketkit.seams import Address, Seconds
from socketkit.server import Server
from socketkit.testing.clients import connect, hang_up
from socketkit.testing.leaks import Account
from socketkit.transports.memory import Memory
from socketkit.transports.tcp import TCP
from socketkit.transports.udp import UDP
from socketkit.transports.unix import UnixDatagram, UnixStream

_TRANSPORTS: dict[str, Callable[[Path], Any]] = {
    "tcp": lambda _folder: TCP("127.0.0.1", 0),
    "udp": lambda _folder: UDP("127.0.0.1", 0),
    "unix": lambda folder: UnixStream(str(folder / "stream")),
    "unix-dgram": lambda folder: UnixDatagram(str(folder / "datagrams")),
    "memory": lambda _folder: Memory(),
}


def pytest_configure(config: pytest.Config) -> None:
    """Register the `leaves` mark."""
    meaning = "may leave these behind: descriptors, threads, children, signals, umask or cwd; say why"
    config.addinivalue_line("markers", f"leaves(*what, reason): {meaning}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each dispatcher and transport if it asks for `every_dispatcher` and `every_transport`."""
    if "every_dispatcher" in metafunc.fixturenames:
        names = sorted(offer.name for offer in Catalog.load().offers("dispatcher"))
        metafunc.parametrize("every_dispatcher", names, indirect=True)
    if "every_transport" in metafunc.fixturenames:
        metafunc.parametrize("every_transport", _TRANSPORTS, indirect=True)


# --- servers -----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Served:
    """A server of a test, and clients for it."""

    server: Server
    _clients: contextlib.ExitStack

    @property
    def address(self) -> Address:
        """The address of its first listener."""
        return self.server.addresses[0]

    @property
    def url(self) -> str:
        """The URL of its first listener."""
        return self.server.urls[0]

    def client(self, timeout: Seconds = 10.0) -> socket.socket:
        """Return the socket of a new client, connected to the first listener, with this timeout. It is closed when the test is over."""
        try:
            client = self.server.connect()
        except ConfigError:  # no transport `memory`
            client = connect(self.address, self.server.transports[0].kind, timeout)
        client.settimeout(timeout)
        self._clients.callback(hang_up, client)
        return client


@pytest.fixture
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[..., Served]]:
    """Return a function that serves a handler until the test is over: ``serve(handler, transport=..., dispatcher=..., ...)``.

    It takes what `socketkit.Server` takes, with TCP on a free port as the default transport, and returns a `Served`. A test that runs
    for every dispatcher or transport is skipped where the handler and these parts do not fit together.
    """
    with contextlib.ExitStack() as servers:

        def start(handler: Any, *, transport: Any = None, **parts: Any) -> Served:
            try:
                server = Server(TCP("127.0.0.1", 0) if transport is None else transport, handler, **parts)
            except IncompatibleError as error:
                if {"every_dispatcher", "every_transport"}.isdisjoint(request.fixturenames):
                    raise
                pytest.skip(str(error))
            servers.enter_context(server)
            clients = servers.enter_context(contextlib.ExitStack())  # closed before the server, whose drain would wait for them
            return Served(server.start(), clients)

        yield start


@pytest.fixture
def every_dispatcher(request: pytest.FixtureRequest) -> Any:
    """Return the recipe of a dispatcher, with its default options; the test runs for each one that is installed."""
    return _made(Catalog.load().find("dispatcher", request.param).recipe)


@pytest.fixture
def every_transport(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return the recipe of a transport, for a place that is free: tcp, udp, unix, unix-dgram or memory; the test runs for each."""
    return _made(partial(_TRANSPORTS[request.param], tmp_path))


def _made(make: Callable[[], Any]) -> Any:
    """Return a recipe; skip the test if it needs options, or features that this platform lacks."""
    try:
        recipe = make()
    except (TypeError, ValueError) as error:
        pytest.skip(f"it cannot be made without options: {error}")
    if lacking := missing(recipe):
        pytest.skip(f"it needs {', '.join(lacking)}")
    return recipe


# --- what a test leaves behind -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves resources behind, except those allowed by `pytest.mark.leaves("threads", reason="...")`."""
    marker = request.node.get_closest_marker("leaves")
    if marker is not None and not marker.kwargs.get("reason"):
        pytest.fail("the mark `leaves` needs a reason")
    before = Account.take()
    yield
    left = before.left_since(frozenset(marker.args if marker else ()))
    before.restore()
    if left:
        pytest.fail("the test left behind:\n    " + "\n    ".join(left), pytrace=False)
