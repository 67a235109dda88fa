"""A cluster for all tests."""

from multiprocessing import resource_tracker

import dask_clusters
import dask_replies
import pytest
from socketkit_dask import Dask

from socketkit import TCP, Server


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Return a scheduler with two workers of one thread each, for tests that harm neither."""
    with dask_clusters.Scheduler(tmp_path_factory.mktemp("cluster")) as scheduler:
        scheduler.work()
        scheduler.work()
        with Server(TCP("127.0.0.1", 0), dask_replies.Replies, dispatcher=Dask(scheduler.address)).start() as server:
            with dask_clusters.Line(server.addresses[0]) as client:  # imports and Dask's own threads, which stay, are there from now on
                assert client.ask("upper ready") == "READY"
        yield scheduler


@pytest.fixture(scope="session", autouse=True)
def tracker():
    """Start the process of `multiprocessing` that stays until the interpreter ends."""
    resource_tracker.ensure_running()
