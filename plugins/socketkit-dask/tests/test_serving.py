"""Replies, errors, clients that leave, and room on the cluster."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

import dask_replies
import distributed
import pytest
from dask_clusters import Held, Kept, Line, Watched, until
from socketkit_dask import ClusterError

from socketkit import TCP, UDP, Graceful, Limits

ANYWHERE = TCP("127.0.0.1", 0)


@pytest.fixture
def held(tmp_path):
    with Held(tmp_path) as held:
        yield held


@pytest.fixture
def serve(cluster):
    """Return a function that starts a server, which is closed when the test is over."""
    with contextlib.ExitStack() as stack:

        def start(handler=dask_replies.Replies, transport=ANYWHERE, *, limits=None, **options):
            recipe = Kept(cluster.address, **options)
            server = Watched(transport, handler, dispatcher=recipe, lifecycle=Graceful(drain=20), limits=limits)
            return stack.enter_context(server).start()

        yield start


def connect(server):
    return Line(server.addresses[0])


def settled(server):
    until(lambda: not server.stats().active)
    return dict(server.stats().outcomes)


# --- replies ----------------------------------------------------------------------------------------------------------


def test_replies_are_computed_by_workers_and_come_in_order(serve, cluster):
    server = serve()
    with connect(server) as client:
        assert int(client.ask("pid")) in [program.pid for program in cluster.programs]
        for text in ("upper a", "quiet", "upper b"):
            client.tell(text)
        assert [client.hear(), client.hear()] == ["A", "B"]
    assert settled(server) == {"finished": 1}


def test_only_messages_travel(serve):
    with connect(serve()) as client:
        assert client.ask("attributes") == "[]"


def test_lengths_and_datagrams_are_answered_too(serve):
    with socket.create_connection(serve(dask_replies.Lengths).addresses[0], timeout=20) as client:
        client.sendall(struct.pack("!I", 7) + b"upper a")
        assert client.recv(100) == struct.pack("!I", 1) + b"A"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.connect(serve(transport=UDP("127.0.0.1", 0)).addresses[0])
        client.send(b"upper a")
        assert client.recv(100) == b"A"


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        ("fail no good", ValueError, "no good"),
        ("number", TypeError, "Replies.reply must return bytes or None, not int"),
        ("exit", SystemExit, "3"),
    ],
)
def test_an_error_there_is_that_requests_error_here(serve, cluster, line, kind, text):
    server = serve()
    with connect(server) as client:
        assert client.ask(line) == ""
    if kind is not SystemExit:  # which no `handle_error` sees
        error = server.error()
        assert (type(error), str(error)) == (kind, text)
    with connect(server) as client:
        assert client.ask("upper next") == "NEXT"
    assert settled(server) == {"failed": 1, "finished": 1}
    assert line not in cluster.log  # nobody else learns what clients say


def test_requests_of_many_clients_run_at_once_on_all_workers(serve, held):
    with connect(serve()) as one, connect(serve()) as other:
        one.tell(str(held))
        other.tell(str(held))
        assert held.begun() != held.begun()
        held.leave(2)
        assert one.hear().startswith("held")
        assert other.hear().startswith("held")


# --- clients that leave -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", [Line.close, Line.reset], ids=["close", "reset"])
def test_a_client_that_leaves_takes_its_message_from_the_cluster(serve, cluster, held, leave):
    server = serve()
    client = connect(server)
    client.tell(str(held))
    held.begun()
    assert wanted(cluster) == 1
    leave(client)
    until(lambda: wanted(cluster) == 0, timeout=5)
    assert settled(server) == {"aborted": 1}
    held.leave()


def test_a_client_that_leaves_while_its_message_waits_keeps_it_from_being_computed(serve, cluster, held):
    server = serve(backlog=5)
    with connect(server) as one, connect(server) as other:
        for client in (one, other):
            client.tell(str(held))
            held.begun()
        third = connect(server)
        third.tell(str(held))
        until(lambda: wanted(cluster) == 3)
        third.close()
        until(lambda: wanted(cluster) == 2, timeout=5)
        held.leave(2)
        assert one.hear().startswith("held")
        assert other.hear().startswith("held")
        assert not held.has_begun(0.3)


def test_a_client_that_shuts_down_its_side_has_left_unless_the_option_says_otherwise(serve, held):
    for half_close, answer in ((False, ""), (True, "held")):
        server = serve(half_close=half_close)
        with connect(server) as client:
            client.tell(str(held))
            held.begun()
            client.socket.shutdown(socket.SHUT_WR)
            if half_close:
                held.leave()
            assert client.hear()[:4] == answer
            if not half_close:
                held.leave()


def test_a_reset_is_noticed_with_half_close_too(serve, cluster, held):
    server = serve(half_close=True)
    client = connect(server)
    client.tell(str(held))
    held.begun()
    client.reset()
    until(lambda: wanted(cluster) == 0, timeout=5)
    assert settled(server) == {"aborted": 1}
    held.leave()


def test_a_request_whose_time_is_over_is_taken_from_the_cluster(serve, cluster, held):
    server = serve(limits=Limits(request=0.5))
    with connect(server) as client:
        client.tell(str(held))
        held.begun()
        assert client.hear() == ""
    until(lambda: wanted(cluster) == 0, timeout=5)
    assert settled(server) == {"timed out": 1}
    held.leave()


def wanted(cluster):
    """Return the number of unfinished tasks on the cluster, whoever wants them."""

    def count(dask_scheduler):
        return sum(task.state not in {"memory", "erred", "forgotten", "released"} for task in dask_scheduler.tasks.values())

    with plain_client(cluster) as client:
        return client.run_on_scheduler(count)


@contextlib.contextmanager
def plain_client(cluster):
    with distributed.Client(cluster.address, set_as_default=False) as client:
        yield client


# --- room -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backlog", "most"), [(0, 2), (1, 4), (1.5, 5)])
def test_no_more_messages_are_there_than_the_cluster_has_room_for(serve, cluster, held, backlog, most):
    server = serve(backlog=backlog)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(7)]
        for client in clients:
            client.tell(str(held))
        until(lambda: wanted(cluster) == most)
        for _ in range(2):
            held.begun()
        assert not held.has_begun(0.3)
        assert wanted(cluster) == most
        held.leave(7)
        assert [client.hear()[:4] for client in clients] == ["held"] * 7
    assert settled(server) == {"finished": 7}


def test_what_others_have_queued_counts_and_room_that_they_leave_is_used(serve, cluster, held):
    server = serve(backlog=1)
    with connect(server) as before:
        assert before.ask("upper before") == "BEFORE"
    with plain_client(cluster) as other:
        others = [other.submit(dask_replies.Replies.hold, None, str(held.folder), pure=False) for _ in range(4)]
        held.begun()
        held.begun()
        until(lambda: wanted(cluster) == 4)
        live = server.live
        until(lambda: live._cluster.room() <= 0 and live._is_paused)
        with connect(server) as client:
            client.tell("upper a")
            client.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.socket.recv(1)
            client.socket.settimeout(20)
            assert wanted(cluster) == 4
            held.leave(4)
            assert client.hear() == "A"
        other.gather(others)


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_drain_lets_messages_finish_and_the_server_starts_again(serve, held):
    server = serve()
    for _ in range(2):
        with connect(server) as client:
            client.tell(str(held))
            held.begun()
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            until(lambda: not server.ready)
            held.leave()
            assert client.hear().startswith("held")
            stopping.join()
        server.start()
    assert dict(server.stats().outcomes) == {"finished": 2}


def test_a_drain_that_ends_takes_its_messages_from_the_cluster(serve, cluster, held):
    server = serve()
    datagrams = serve(transport=UDP("127.0.0.1", 0))
    with connect(server) as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        client.tell(str(held))
        sender.sendto(str(held).encode(), datagrams.addresses[0])
        held.begun()
        held.begun()
        for each in (server, datagrams):
            report = each.stop(drain=0.1)
            assert (report.finished, report.forced, report.stuck) == (0, 1, ())
        assert client.hear() == ""
    until(lambda: wanted(cluster) == 0, timeout=5)
    assert settled(server) in ({"aborted": 1}, {"failed": 1})  # as it notices first: the end of the connection, or that of the message
    assert settled(datagrams) == {"failed": 1}
    assert isinstance(datagrams.error(), ClusterError)
    held.leave(2)
