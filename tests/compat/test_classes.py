"""Every classic server class with every handler class that fits it, driven by real clients."""

import tempfile

import pytest

import socketkit.socketserver
from compat.classic import exercise, program

REPLIES = [b"REQUEST %d\n" % number for number in range(5)]

STREAMS = [(server, handler) for server in ("TCPServer", "UnixStreamServer") for handler in ("StreamRequestHandler", "BaseRequestHandler")]
DATAGRAMS = [
    (server, handler) for server in ("UDPServer", "UnixDatagramServer") for handler in ("DatagramRequestHandler", "BaseRequestHandler")
]
PAIRS = STREAMS + DATAGRAMS

FORKING = """
import importlib
from compat.classic import exercise
print(exercise(importlib.import_module("socketserver"), *sys.argv[1:]))
"""


@pytest.fixture
def folder():
    """A folder with a name short enough for a Unix socket's path."""
    with tempfile.TemporaryDirectory(prefix="sk") as name:
        yield name


@pytest.mark.parametrize("strategy", ["", "Threading"])
@pytest.mark.parametrize(("server", "handler"), PAIRS)
def test_several_requests_are_answered(strategy, server, handler, folder):
    assert exercise(socketkit.socketserver, strategy + server, handler, folder) == REPLIES


@pytest.mark.parametrize(("server", "handler"), PAIRS)
def test_several_requests_are_answered_by_a_child_each(server, handler, folder):
    assert program(FORKING, "Forking" + server, handler, folder).strip() == str(REPLIES)


@pytest.mark.parametrize(("server", "handler"), [pair for pair in PAIRS if "Unix" not in pair[0]])
@pytest.mark.parametrize("strategy", ["", "Threading", "Forking"])
def test_a_class_mixed_by_a_program_does_as_the_one_with_a_name(strategy, server, handler, folder):
    mixed = f"""
import socketserver
socketserver.Mixed{server} = type("Mixed{server}", ({f"socketserver.{strategy}MixIn, " if strategy else ""}socketserver.{server},), {{}})
"""
    assert program(mixed + FORKING, "Mixed" + server, handler, folder).strip() == str(REPLIES)


def test_every_class_of_the_module_was_exercised_above():
    classes = {name for name in socketkit.socketserver.__all__ if name.endswith("Server")} - {"BaseServer"}
    assert classes == {strategy + server for strategy in ("", "Threading", "Forking") for server, _ in PAIRS}
