"""What can be composed, and what is refused, with the remedy."""

from __future__ import annotations

import functools
import pickle
import socket
import subprocess
import sys
import time

import attrs
import dask_replies
import distributed
import pytest
from socketkit_dask import ClusterError, Dask, WorkersLostError, _scheduling, socketkit_dispatchers

from socketkit import Prefork, Server, StreamRequestHandler, compose
from socketkit.errors import ConfigError, IncompatibleError


def composed(dispatcher):
    return compose({"listen": "tcp://127.0.0.1:0", "handler": "dask_replies:Replies", "dispatcher": dispatcher}).dispatcher


def test_the_hook_offers_it_by_name():
    assert socketkit_dispatchers() == {"dask": Dask}


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("dask", Dask()),
        ("dask:tcp://127.0.0.1:8786", Dask("tcp://127.0.0.1:8786")),
        ("dask:127.0.0.1:8786", Dask("127.0.0.1:8786")),
        ("dask:tls://scheduler.internal:8786,backlog=0.5,patience=1m", Dask("tls://scheduler.internal:8786", backlog=0.5, patience=60.0)),
        ("dask,workers=2,threads=4,retries=0", Dask(workers=2, threads=4, retries=0)),
        ("dask:none,patience=none,half_close=true", Dask(patience=None, half_close=True)),
        ("prefork:2/dask:tcp://[::1]:8786", Prefork(2, Dask("tcp://[::1]:8786"))),
        ({"use": "dask", "scheduler": "tcp://127.0.0.1:8786", "timeout": "5s"}, Dask("tcp://127.0.0.1:8786", timeout=5.0)),
    ],
    ids=str,
)
def test_it_is_composed_by_name(text, recipe):
    assert composed(text) == recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "tcp://"}, "scheduler must be an address such as tcp://127.0.0.1:8786, or none for a local cluster, not 'tcp://'"),
        ({"scheduler": "h"}, "scheduler must be an address"),
        ({"scheduler": 8786}, "scheduler must be an address"),
        ({"workers": 0}, "workers must be a whole number of at least 1"),
        ({"threads": 0}, "threads must be a whole number of at least 1"),
        ({"backlog": -1}, "backlog must be 0 or more tasks for each worker thread, not -1"),
        ({"backlog": float("inf")}, "backlog must be 0 or more"),
        ({"patience": -1}, "patience must be 0 or more seconds"),
        ({"retries": -1}, "retries must be a whole number of at least 0"),
        ({"timeout": 0}, "timeout must be more than 0 seconds"),
        ({"timeout": None}, "timeout must be 0 or more seconds, not None"),
        ({"security": "yes"}, "security must be a distributed.Security, in Python"),
        ({"scheduler": "tcp://h:1", "workers": 2}, "workers and threads are for a local cluster; leave them out, or leave scheduler out"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Dask(**options)


def test_security_cannot_be_text():
    with pytest.raises(ConfigError, match="security"):
        composed({"use": "dask", "security": "yes"})


# --- handlers ---------------------------------------------------------------------------------------------------------


class Plain(StreamRequestHandler):
    pass


@pytest.mark.parametrize("handler", [Plain, functools.partial(Plain), print], ids=["class", "partial", "function"])
def test_a_handler_that_does_not_answer_messages_is_refused(handler):
    with pytest.raises(IncompatibleError, match="derive it from MessageHandler, or choose another dispatcher"):
        Server("tcp://127.0.0.1:0", handler, dispatcher=Dask())


def test_a_handler_that_workers_cannot_import_is_refused():
    class Inner(dask_replies.Replies):
        pass

    with pytest.raises(IncompatibleError, match=r"cannot send .*Inner to its workers .*; define it at the top of a module"):
        Server("tcp://127.0.0.1:0", Inner, dispatcher=Dask())


# --- a cluster that is not there --------------------------------------------------------------------------------------


def refused(scheduler, **options):
    server = Server("tcp://127.0.0.1:0", dask_replies.Replies, dispatcher=Dask(scheduler, timeout=1.0, **options))
    began = time.monotonic()
    with server, pytest.raises(ClusterError) as caught:
        server.start()
    assert time.monotonic() - began < 15
    return str(caught.value)


@pytest.mark.usefixtures("cluster")
def test_a_scheduler_that_is_not_there_is_an_error_at_the_start_with_a_remedy():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    message = refused(f"tcp://127.0.0.1:{port}")
    assert message.startswith(f"the scheduler at tcp://127.0.0.1:{port} cannot be used (")
    assert "start one there with `dask scheduler`, or correct the option scheduler" in message


@pytest.mark.usefixtures("cluster")
def test_something_else_that_listens_there_is_the_same():
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "cannot be used" in refused(f"tcp://127.0.0.1:{other.getsockname()[1]}")


def test_security_is_that_of_dask(cluster):
    assert "encryption required" in refused(cluster.address, security=distributed.Security(require_encryption=True))


# --- errors and imports -----------------------------------------------------------------------------------------------


def test_errors_say_what_to_do_and_can_be_pickled():
    assert str(WorkersLostError(2)).startswith("2 workers that computed it died; look for a crash or a lack of memory")
    assert str(WorkersLostError(1)).startswith("the worker that computed this message died; ")
    again = pickle.loads(pickle.dumps(WorkersLostError(2)))
    assert again.attempts == 2


def test_a_recipe_is_frozen_and_its_security_is_not_shown():
    recipe = Dask(security=distributed.Security())
    assert "ecurity" not in repr(recipe)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        recipe.retries = 2


def test_importing_it_does_not_import_dask():
    source = "import sys, socketkit_dask; assert not {'dask', 'distributed', 'tornado'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", source], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_what_the_scheduler_runs_needs_neither_the_plugin_nor_socketkit(tmp_path):
    from distributed.protocol.pickle import dumps

    source = """
import pathlib, pickle, sys
sys.modules.update(socketkit=None, socketkit_dask=None)
assert pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()).name == "socketkit-client"
"""
    (tmp_path / "agent").write_bytes(dumps(_scheduling.make_agent("socketkit-client", "client")))
    subprocess.run([sys.executable, "-c", source, str(tmp_path / "agent")], check=True)
