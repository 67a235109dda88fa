"""What the tests of TCP and UDP share."""

import logging
import shutil
import subprocess

import pytest

from socketkit import TCP, UDP
from socketkit.logs import flush


@pytest.fixture(params=[TCP, UDP], ids=["tcp", "udp"])
def recipe(request):
    return request.param


@pytest.fixture
def opened():
    """Return a function that opens all listeners of a transport, which the test need not close, and returns them."""
    listeners = []

    def open_(transport):
        found = transport.open_all()
        listeners.extend(found)
        return found

    yield open_
    for listener in listeners:
        listener.close()


@pytest.fixture
def logged(caplog):
    """Return a function that returns what the transports have logged so far, each line with its level."""
    caplog.set_level(logging.INFO, "socketkit.transports")

    def lines():
        flush()
        return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]

    return lines


@pytest.fixture
def isolated():
    """Return a function that returns the command which runs a program as root in namespaces of its own: -m for mounts, -n for networks."""

    def command(*options):
        found = ("unshare", "-Ur", *options)
        if shutil.which("unshare") is None or subprocess.run([*found, "true"], capture_output=True, check=False).returncode:
            pytest.skip("this system allows no namespaces")
        if "-n" in options and shutil.which("ip") is None:
            pytest.skip("needs iproute2")
        return found

    return command
