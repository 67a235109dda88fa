"""Servers say how many handlers they run at once, by their dispatchers: see `socketkit.seams.BoundsHandlers`."""

from functools import partial

import pytest

from helpers.support import python
from socketkit import (
    Adaptive,
    Asyncio,
    AsyncStreamRequestHandler,
    Executor,
    Forks,
    Pool,
    Prefork,
    Server,
    StreamRequestHandler,
    Sync,
    Threads,
)

LOOP = Asyncio(limit=500, workers=3)


@pytest.mark.parametrize(
    ("dispatcher", "most"),
    [
        (Sync(), 1),
        (Pool(8), 8),
        (Adaptive(16), 16),
        (None, Adaptive().workers),
        (Forks(5), 5),
        (Executor(limit=3), 3),
        (Executor(), None),
        (Prefork(2, Pool(8)), 16),
        (Prefork(2, Forks(5)), 10),
        (Prefork(2), 2 * Adaptive().workers),
        (Prefork(2, Threads()), None),
        (Threads(), None),
        (LOOP, 3),
        (Prefork(2, LOOP), 6),
    ],
    ids=repr,
)
def test_a_server_says_how_many_handlers_it_runs_at_once(dispatcher, most):
    assert Server("tcp://127.0.0.1:0", StreamRequestHandler, dispatcher=dispatcher).max_handlers == most


@pytest.mark.parametrize("handler", [AsyncStreamRequestHandler, partial(AsyncStreamRequestHandler)], ids=repr)
@pytest.mark.parametrize(("dispatcher", "most"), [(LOOP, 500), (Prefork(2, LOOP), 1000)], ids=repr)
def test_an_event_loop_has_room_for_more_asynchronous_handlers(dispatcher, most, handler):
    assert Server("tcp://127.0.0.1:0", handler, dispatcher=dispatcher).max_handlers == most


def test_a_worker_says_how_many_it_runs_itself():
    told = python("""
from socketkit import Prefork, Pool, Server, StreamRequestHandler
from socketkit.testing.clients import talk

class Tells(StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"%d" % self.server.max_handlers)

with Server("tcp://127.0.0.1:0", Tells, dispatcher=Prefork(2, Pool(3))).start() as server:
    print(server.max_handlers, talk(server.addresses[0], b"").decode())
""").stdout
    assert told == "6 3\n"
