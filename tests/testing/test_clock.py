"""A clock that stands still until a test puts it forward."""

import gc
import socket

import pytest

from helpers import innards
from socketkit import TCP, Adaptive, ConversationHandler, Graceful, Pool, Server
from socketkit._engine.intake import Intake
from socketkit.testing import FakeClock


class Echo(ConversationHandler):
    def handle_one_request(self):
        self.wfile.write(self.rfile.readline())


def test_it_stands_still_and_never_goes_back():
    clock = FakeClock(5.0)
    assert clock() == clock() == 5.0
    clock.advance(1.5)
    assert clock() == 6.5
    with pytest.raises(ValueError, match="never goes back"):
        clock.advance(-1)


@pytest.mark.parametrize("dispatcher", [Pool(1), Adaptive()], ids=["pool", "adaptive"])
def test_a_conversation_is_closed_in_the_moment_in_which_its_idle_time_is_over(dispatcher):
    clock = FakeClock()
    with Server(TCP("127.0.0.1", 0), Echo, dispatcher=dispatcher, lifecycle=Graceful(drain=5), clock=clock) as server:
        server.start()
        with socket.create_connection(server.addresses[0], timeout=10) as client:
            for _ in range(3):
                client.sendall(b"hello\n")
                assert client.recv(10) == b"hello\n"
                while not innards.parked(server):
                    pass
                clock.advance(74.0)
            clock.advance(1.2)
            assert client.recv(10) == b""
    assert server.stats().outcomes == {"finished": 1}


def test_nobody_is_kept_alive_by_following_it():
    clock = FakeClock()
    for _ in range(3):
        with Intake([], clock=clock):
            assert len(clock._followers) == 1
        gc.collect()
    clock.advance(1.0)


def test_whoever_waits_hears_of_it():
    clock = FakeClock()
    due = []
    with Intake([], clock=clock) as intake:
        intake.call_later(3600.0, lambda: (due.append(clock()), intake.stop()))
        clock.advance(3599.0)
        assert intake.take(0) is None
        assert due == []
        clock.advance(1.0)
        assert intake.take() is None
    assert due == [4600.0]
