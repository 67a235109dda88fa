"""Dispatchers say how many handlers they run at once: see `socketkit.seams.BoundsHandlers`."""

import pytest

from socketkit import Adaptive, Asyncio, Executor, Forks, Pool, Prefork, Sync, Threads


@pytest.mark.parametrize(
    ("dispatcher", "most"),
    [
        (Sync(), 1),
        (Pool(8), 8),
        (Adaptive(16), 16),
        (Forks(5), 5),
        (Executor(limit=3), 3),
        (Executor(), None),
        (Prefork(2, Pool(8)), 16),
        (Prefork(2, Forks(5)), 10),
        (Prefork(2), None),
        (Prefork(2, Threads()), None),
        (Threads(), None),
        (Asyncio(), None),
    ],
    ids=repr,
)
def test_a_dispatcher_says_how_many_handlers_it_runs_at_once(dispatcher, most):
    assert getattr(dispatcher, "max_handlers", None) == most
