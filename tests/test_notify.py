"""What a service manager is told: READY, STOPPING, pings of the watchdog, in order and only while requests can be taken."""

import os
import socket
import time

import pytest

from helpers.support import python
from socketkit._system import notify

PRELUDE = """
import os, signal, socket, sys, threading, time
from socketkit import Graceful, Server, Sync, TCP
from socketkit.testing.clients import talk

manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind("\\0" + f"socketkit-test-{os.getpid()}")
manager.settimeout(20)
os.environ["NOTIFY_SOCKET"] = f"@socketkit-test-{os.getpid()}"

def told():
    return manager.recv(4096).decode()

def upper(request, peer, server):
    request.sendall(request.recv(10).upper())

def in_background(run):
    thread = threading.Thread(target=run)
    thread.start()
    return thread
"""

DISPATCHERS = ["sync", "thread", "fork", "pool", "adaptive", "asyncio", "executor", "prefork:2"]


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """Return a manager's socket, at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_a_message_goes_to_a_path(manager):
    assert notify.send("READY=1", "STATUS=serving")
    assert manager.recv(100) == b"READY=1\nSTATUS=serving"


def test_a_message_goes_to_an_abstract_name(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0socketkit-notify-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@socketkit-notify-{os.getpid()}")
        assert notify.send("STOPPING=1")
        assert manager.recv(100) == b"STOPPING=1"


def test_reloading_says_since_when(manager):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify.reloading()
    word, since = manager.recv(100).decode().splitlines()
    assert word == "RELOADING=1"
    assert before <= int(since.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.parametrize(
    "place", [None, "", "relative", "vsock:2:1234", "/nowhere/at/all", "@nobody-is-there", "/" + "x" * 200, "/dev/null"]
)
def test_without_a_manager_a_message_is_lost(place, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if place is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", place)
    assert not notify.send("READY=1")


def test_a_manager_that_does_not_listen_is_not_waited_for(manager):
    began = time.monotonic()
    while notify.send("WATCHDOG=1", patience=0):
        pass
    assert not notify.send("READY=1", patience=0.05)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("environment", "period"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "2500000"}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": ""}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_watchdog_waits_for_the_process_it_names(environment, period):
    assert notify.watchdog(environment) == period


# --- a server -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["os.kill(os.getpid(), signal.SIGTERM)", "server.stop(wait=False)"])
@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_server_in_the_main_thread_tells_that_it_is_ready_and_that_it_stops(dispatcher, stop):
    python(
        PRELUDE
        + f"""
server = Server("tcp://127.0.0.1:0", upper, dispatcher={dispatcher!r})
def ask():
    assert told() == "READY=1"
    assert server.ready
    assert talk(server.addresses[0], b"a") == b"A"
    {stop}
    assert told() == "STOPPING=1"
thread = in_background(ask)
server.serve_forever()
thread.join()
manager.setblocking(False)
try:
    raise AssertionError(told())
except BlockingIOError:
    pass
"""
    )


def test_a_lame_duck_is_told_when_it_begins():
    python(
        PRELUDE
        + """
server = Server("tcp://127.0.0.1:0", upper, lifecycle=Graceful(lame_duck=600))
def ask():
    assert told() == "READY=1"
    os.kill(os.getpid(), signal.SIGTERM)
    assert told() == "STOPPING=1"
    assert talk(server.addresses[0], b"a") == b"A"
    os.kill(os.getpid(), signal.SIGTERM)
thread = in_background(ask)
server.serve_forever()
thread.join()
"""
    )


def test_a_server_in_the_background_leaves_it_to_the_program():
    python(
        PRELUDE
        + """
server = Server("tcp://127.0.0.1:0", upper).start()
server.stop()
manager.setblocking(False)
try:
    raise AssertionError(told())
except BlockingIOError:
    pass
"""
    )


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_the_watchdog_is_pinged_twice_in_its_time(dispatcher):
    python(
        PRELUDE
        + f"""
os.environ["WATCHDOG_USEC"] = "400000"
server = Server("tcp://127.0.0.1:0", upper, dispatcher={dispatcher!r})
def ask():
    assert told() == "READY=1"
    moments = []
    for _ in range(5):
        assert told() == "WATCHDOG=1"
        moments.append(time.monotonic())
    assert 0.6 < moments[-1] - moments[0] < 1.8, moments  # four times 0.2 s; twice that on a machine that is busy
    server.stop(wait=False)
    while told() != "STOPPING=1": pass
thread = in_background(ask)
server.serve_forever()
thread.join()
"""
    )


def test_a_loop_that_is_stuck_does_not_ping():
    python(
        PRELUDE
        + """
os.environ["WATCHDOG_USEC"] = "100000"
inside, leave = threading.Event(), threading.Event()
def stuck(request, peer, server):
    inside.set()
    leave.wait(20)
server = Server("tcp://127.0.0.1:0", stuck, dispatcher=Sync())
def ask():
    assert told() == "READY=1"
    client = socket.create_connection(server.addresses[0])
    inside.wait()
    manager.setblocking(False)
    try:
        while told(): pass  # those from before
    except BlockingIOError:
        pass
    manager.settimeout(0.5)
    try:
        raise AssertionError(told())
    except TimeoutError:
        pass
    leave.set()
    manager.settimeout(20)
    assert told() == "WATCHDOG=1"
    client.close()
    server.stop(wait=False)
thread = in_background(ask)
server.serve_forever()
thread.join()
"""
    )


@pytest.mark.parametrize("dispatcher", ["adaptive", "pool:2", "thread"])
def test_a_handler_that_blocks_does_not_keep_the_others_from_pinging(dispatcher):
    python(
        PRELUDE
        + f"""
os.environ["WATCHDOG_USEC"] = "100000"
inside, leave = threading.Event(), threading.Event()
def stuck(request, peer, server):
    inside.set()
    leave.wait(20)
server = Server("tcp://127.0.0.1:0", stuck, dispatcher={dispatcher!r})
def ask():
    assert told() == "READY=1"
    client = socket.create_connection(server.addresses[0])
    inside.wait()
    for _ in range(20):  # more than were sent before
        assert told() == "WATCHDOG=1"
    leave.set()
    client.close()
    server.stop(wait=False)
thread = in_background(ask)
server.serve_forever()
thread.join()
"""
    )


def test_a_manager_that_is_gone_does_not_disturb_serving():
    python(
        PRELUDE
        + """
os.environ["WATCHDOG_USEC"] = "20000"
server = Server("tcp://127.0.0.1:0", upper)
def ask():
    assert told() == "READY=1"
    manager.close()
    for _ in range(200):
        assert talk(server.addresses[0], b"a") == b"A"
    server.stop(wait=False)
thread = in_background(ask)
server.serve_forever()
thread.join()
assert server.stats().outcomes == {"finished": 200}
"""
    )
