"""Options of TCP and UDP that the system enforces: as seen from a client or read back from the system, and what the log says."""

import errno
import socket
import sys
from pathlib import Path

import pytest

from helpers.support import TESTS
from socketkit import TCP, UDP, Server, UnixStream
from socketkit.composition import capabilities, config
from socketkit.errors import IncompatibleError, ListenError
from socketkit.testing.programs import run, with_path

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="an option of Linux")


def connected(listener):
    """Return the two sockets of a new connection."""
    client = socket.create_connection(listener.address)
    return listener.accept()[0], client


@pytest.mark.parametrize(
    ("make", "feature"),
    [
        (lambda: TCP("*", 0, interface="lo"), "SO_BINDTODEVICE for interface"),
        (lambda: UDP("*", 0, interface="lo"), "SO_BINDTODEVICE for interface"),
        (lambda: TCP("*", 0, reuse_port=True), "SO_REUSEPORT for reuse_port"),
        (lambda: UDP("*", 0, reuse_port=True), "SO_REUSEPORT for reuse_port"),
        (lambda: TCP("*", 0, fastopen=1), "TCP_FASTOPEN for fastopen"),
        (lambda: TCP("*", 0, keepalive=60), "TCP_KEEPIDLE for keepalive"),
    ],
)
def test_an_option_that_the_system_lacks_is_refused_by_name(make, feature, monkeypatch):
    Server(make(), print)
    monkeypatch.setitem(capabilities.FEATURES, feature, False)
    with pytest.raises(IncompatibleError, match=rf"needs {feature}, which this platform \(.*\) lacks; leave that option out"):
        Server(make(), print)
    Server([TCP("*", 0), UDP("*", 0)], print)  # without the option nothing is missing


# --- interface ----------------------------------------------------------------------------------------------------------


@on_linux
def test_a_socket_is_bound_to_an_interface(recipe, opened):
    [listener] = opened(recipe("*", 0, interface="lo"))
    assert listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b"lo\0"


@on_linux
def test_what_arrives_by_another_interface_is_not_taken(opened):
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not others:
        pytest.skip("needs an interface besides lo")
    [listener] = opened(TCP("0.0.0.0", 0, interface=others[0]))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.address[1]), 10)


@on_linux
def test_an_interface_that_is_not_there_is_named(recipe):
    with pytest.raises(ListenError) as caught:
        recipe("127.0.0.1", 0, interface="nosuch0").open_all()
    assert caught.value.errno == errno.ENODEV
    assert str(caught.value).endswith(
        "the interface 'nosuch0' cannot be used (No such device); give an interface of this machine, such as `ip link` lists"
    )


@on_linux
def test_without_the_right_to_an_interface_the_error_names_the_right(recipe, monkeypatch):
    class Socket(socket.socket):
        def setsockopt(self, level, option, *value):
            if option == socket.SO_BINDTODEVICE:
                raise OSError(errno.EPERM, "Operation not permitted")
            super().setsockopt(level, option, *value)

    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(ListenError, match=r"the interface 'lo' cannot be used .*; run with the capability CAP_NET_RAW"):
        recipe("127.0.0.1", 0, interface="lo").open_all()


@pytest.mark.parametrize("name", ["", "x" * 16, "a\0b", 1])
def test_what_is_no_name_of_an_interface_is_refused(recipe, name):
    with pytest.raises(ValueError, match="interface must be the name of a network interface"):
        recipe("*", 0, interface=name)


# --- reuse_port ---------------------------------------------------------------------------------------------------------


def test_the_log_says_that_reuse_port_lets_others_take_a_share(recipe, opened, logged):
    opened(recipe("*", 0, reuse_port=True))
    url = recipe("*", 0).url
    told = "with reuse_port, another process of the same user can take a share of the requests; a restart does not need it"
    assert logged() == [f"WARNING {url}: {told}"]
    opened(recipe("*", 0))
    assert len(logged()) == 1


# --- backlog ------------------------------------------------------------------------------------------------------------


@on_linux
def test_the_log_says_how_many_connections_may_wait_if_the_system_allows_fewer_than_asked(opened, logged):
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    opened(TCP("127.0.0.1", 0, backlog=most))
    assert logged() == []
    opened(TCP("127.0.0.1", 0, backlog=most + 1))
    numbers = f"the system lets {most} connections wait, not the {most + 1} of backlog"
    assert logged() == [f"WARNING tcp://127.0.0.1:0: {numbers}; raise net.core.somaxconn, or lower backlog"]


@pytest.mark.parametrize("option", ["backlog", "fastopen"])
@pytest.mark.parametrize("value", [0, 1 << 31, "8", 1.5])
def test_a_length_of_a_queue_is_a_number_that_the_system_takes(option, value):
    with pytest.raises(ValueError, match=f"{option} must be a whole number from 1 to 2147483647"):
        TCP("*", 0, **{option: value})
    if option == "backlog":
        with pytest.raises(ValueError, match="backlog must be a whole number from 1 to 2147483647"):
            UnixStream("path", backlog=value)


# --- keepalive ----------------------------------------------------------------------------------------------------------


@on_linux
@pytest.mark.parametrize(("keepalive", "set_"), [(60, (1, 60, 20)), (1, (1, 1, 1)), (7.5, (1, 8, 3)), (32767, (1, 32767, 10923))])
def test_accepted_sockets_inherit_the_times_of_keepalive(opened, keepalive, set_):
    accepted, client = connected(*opened(TCP("127.0.0.1", 0, keepalive=keepalive)))
    with accepted, client:
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == set_[0]
        times = [accepted.getsockopt(socket.IPPROTO_TCP, option) for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)]
        assert times == list(set_[1:])
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3


def test_without_keepalive_nobody_is_probed(opened):
    accepted, client = connected(*opened(TCP("127.0.0.1", 0)))
    with accepted, client:
        assert not accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


SILENT = """
ip link set lo up
exec "$1" -c '
import errno, socket, subprocess
from socketkit import TCP
listener = TCP("127.0.0.1", 0, keepalive=1).open()
client = socket.create_connection(listener.address)
accepted, _ = listener.accept()
accepted.settimeout(20)
subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
try:
    print(accepted.recv(1))
except OSError as error:
    print(errno.errorcode.get(error.errno))
'
"""


@on_linux
def test_a_peer_that_has_vanished_is_noticed(isolated):
    done = run(*isolated("-n"), "sh", "-ec", SILENT, "sh", sys.executable, env=with_path(TESTS))
    assert done.stdout == "ETIMEDOUT\n"


@pytest.mark.parametrize("value", [0, 0.5, 32768, "60", True, float("inf")])
def test_a_time_that_the_system_does_not_take_is_refused(value):
    with pytest.raises(ValueError, match="keepalive must be 1 to 32767 seconds, or none for no probes, not"):
        TCP("*", 0, keepalive=value)


def test_options_are_read_from_a_url():
    text = "tcp://*:80?keepalive=2m&fastopen=16&interface=eth0&v6only=true&reuse_port=true"
    assert config.transport(text) == TCP("*", 80, keepalive=120.0, fastopen=16, interface="eth0", v6only=True, reuse_port=True)


# --- fastopen -----------------------------------------------------------------------------------------------------------


FAST = """
ip link set lo up
echo "$2" > /proc/sys/net/ipv4/tcp_fastopen
exec "$1" -c '
import logging, socket, struct
from socketkit import TCP
from socketkit.logs import flush
logging.basicConfig(format="%(message)s")
listener = TCP("127.0.0.1", 0, fastopen=7).open()
flush()
print(listener.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN))
for _ in range(2):  # the first gets the cookie that the second shows
    with socket.socket() as client:
        client.sendto(b"hello", socket.MSG_FASTOPEN, listener.address)
        listener.socket.setblocking(True)
        with listener.accept()[0] as accepted:
            assert accepted.recv(5) == b"hello"
            options = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
print(bool(options & 32))  # TCPI_OPT_SYN_DATA; source: linux/tcp.h
'
"""


@on_linux
@pytest.mark.parametrize(("setting", "fast"), [("3", True), ("1", False)])
def test_a_client_that_is_known_sends_data_with_its_syn(setting, fast, isolated):
    done = run(*isolated("-n"), "sh", "-ec", FAST, "sh", sys.executable, setting, env=with_path(TESTS))
    assert done.stdout.splitlines() == ["7", str(fast)]
    told = "tcp://127.0.0.1:0: the system takes no data with a SYN, so fastopen has no effect; set net.ipv4.tcp_fastopen to 3"
    assert done.stderr.splitlines() == ([] if fast else [told])
