import socket
import threading

import pytest

from socketkit.testing.clients import address, ask, rest_of, talk


def test_the_clients_return_all_that_a_server_says():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = threading.Thread(target=_answer, args=(listener,))
        served.start()
        assert talk(listener.getsockname(), b"all of it") == b"all of it" * 10_000
        served.join()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        served = threading.Thread(target=lambda: receiver.sendto(*receiver.recvfrom(100)))
        served.start()
        assert ask(receiver.getsockname(), b"packet") == b"packet"
        served.join()


def _answer(listener):
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as received:
        connection.sendall(received.read() * 10_000)


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("tcp://127.0.0.1:9999", ("127.0.0.1", 9999)),
        ("udp://[::1]:9999", ("::1", 9999)),
        ("unix:///run/socket", "/run/socket"),
        ("unix-dgram:///run/socket", "/run/socket"),
        ("unix:@name", "\0name"),
    ],
)
def test_a_url_says_where_to_connect_to(url, where):
    assert address(url) == where


def test_a_unix_datagram_is_answered(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"{tmp_path}/socket")
        served = threading.Thread(target=lambda: receiver.sendto(*receiver.recvfrom(100)))
        served.start()
        assert ask(f"{tmp_path}/socket", b"packet") == b"packet"
        served.join()


def test_the_rest_is_all_that_follows():
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(b"greeting" + b"rest" * 30_000)
        assert ours.recv(8) == b"greeting"
        assert rest_of(ours) == b"rest" * 30_000
