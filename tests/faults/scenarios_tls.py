"""The scenarios of the catalogue's rows about TLS; see `scenarios`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.lab import PATIENCE, Counter, Lab, Served, authority, children, resets, trusting, within
from faults.register import holds
from socketkit import ConversationHandler, Limits

LARGEST = 16384
"""Most bytes of data in a record. Source: RFC 8446, 5.1."""


class Client:
    """A client whose encrypted bytes the scenario sends and receives itself."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = trusting().wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def unsent(self, step: Callable[..., Any], *arguments: Any) -> bytes:
        """Take one step as far as it goes without the server, and return the bytes to send."""
        with contextlib.suppress(ssl.SSLWantReadError):
            step(*arguments)
        return self._outgoing.read()

    def hello(self) -> bytes:
        """Return the first message of the handshake."""
        return self.unsent(self.tls.do_handshake)

    def finish(self, step: Callable[..., Any], *arguments: Any, sends: bool = True) -> Any:
        """Take one step to its end, sending and receiving what it needs. sends: also send what is left to send at its end."""
        while True:
            try:
                result = step(*arguments)
            except ssl.SSLWantReadError:
                self.raw.sendall(self._outgoing.read())
                received = self.raw.recv(65536)
                self._incoming.write(received) if received else self._incoming.write_eof()
            else:
                if sends:
                    self.raw.sendall(self._outgoing.read())
                return result

    def shake(self) -> None:
        self.finish(self.tls.do_handshake)


def in_the_middle(client: socket.socket) -> Client:
    """Begin a handshake, and return the client once the server has answered its first message."""
    shaking = Client(client)
    client.sendall(shaking.hello())
    assert client.recv(1, socket.MSG_PEEK)
    return shaking


def half_a_hello(client: socket.socket) -> None:
    client.sendall(Client(client).hello()[:100])


def rest(client: socket.socket) -> bytes:
    """Return what arrives until the end of the connection, or its reset."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while more := client.recv(65536):
            received += more
    return received


@contextlib.contextmanager
def reasons(lab: Lab) -> Iterator[Callable[[], list[str]]]:
    """Log at DEBUG; give a function that returns why layers have ended connections."""
    log = logging.getLogger("socketkit")
    log.setLevel(logging.DEBUG)
    handler = logging.FileHandler(lab.folder / "reasons")
    log.addHandler(handler)
    try:
        yield lambda: re.findall(r"ended the connection: tls: (.*)", (lab.folder / "reasons").read_text())
    finally:
        log.removeHandler(handler)
        handler.close()
        log.setLevel(logging.NOTSET)


def openssl(served: Served, *words: str) -> subprocess.Popen[bytes]:
    """Start `openssl s_client`, which takes a command from each write to its standard input."""
    where = f"{served.address[0]}:{served.address[1]}"
    command = ["openssl", "s_client", "-connect", where, "-CAfile", authority(), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# --- handshakes ------------------------------------------------------------------------------------------------------


@holds("TL1")
def a_client_that_says_nothing(lab: Lab) -> None:
    stalled(lab, lambda _client: None)


@holds("TL2")
def a_client_that_stops_in_its_hello(lab: Lab) -> None:
    stalled(lab, half_a_hello)


@holds("TL3")
def a_client_that_stops_after_the_servers_hello(lab: Lab) -> None:
    stalled(lab, in_the_middle)


def stalled(lab: Lab, begin: Callable[[socket.socket], Any]) -> None:
    """Let a client begin its handshake and stop: others are served meanwhile, and its connection ends at the deadline."""
    with lab.serve(limits=Limits(handshake=0.5)) as served:
        with served.connect() as client:
            begin(client)
            if lab.dispatcher != "sync":  # which serves one client after another
                served.good()
            rest(client)
        served.good()
    served.ended_as({"timed out": 1, "finished": 1 if lab.dispatcher == "sync" else 2})


@holds("TL4")
def clients_that_leave_in_the_handshake(lab: Lab) -> None:
    with lab.serve() as served:
        for begin in (half_a_hello, in_the_middle):
            for leave in (socket.socket.close, resets):
                client = served.connect()
                begin(client)
                leave(client)
        served.good()
    assert lab.log() == "", lab.log()
    served.ended_as({"aborted": 4, "finished": 1})


NOT_TLS = {
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n": "http request",
    bytes(range(7, 200)): "wrong version number",
    b"\x16\x03\x01\xff\xff" + bytes(300): "packet length too long" if ssl.OPENSSL_VERSION_INFO < (3, 2) else "record layer failure",
    b"\x80\x80" * 50: "SSL 2",
}
"""What clients send, and the reason that the log gives, in the words of OpenSSL."""


@holds("TL5")
def clients_that_do_not_speak_tls(lab: Lab) -> None:
    with reasons(lab) as logged, lab.serve() as served:
        for data in NOT_TLS:
            with served.connect() as client:
                client.sendall(data)
                alert = rest(client)
                assert (alert[:1], len(alert)) == (b"\x15", 7), alert
        served.good()
    told = set(logged())  # not a list, since each process logs for itself, and repeats the first record to count the others
    assert told <= set(NOT_TLS.values()), told
    assert len(told) >= 3, told
    served.ended_as({"failed": len(NOT_TLS), "finished": 1})


@holds("TL6")
def clients_that_the_server_cannot_agree_with(lab: Lab) -> None:
    refused = {
        "no shared cipher": ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        "unsupported protocol": ("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"),
        "peer did not return a certificate": ("-tls1_3",),
    }
    required = {"tls.client": "required", "tls.client_ca": authority(), "tls.ciphers": "ECDHE-ECDSA-AES256-GCM-SHA384"}
    with reasons(lab) as logged, lab.serve(options=required) as served:
        for words in refused.values():
            with openssl(served, *words) as client:
                client.communicate(timeout=PATIENCE)
        assert within(PATIENCE, lambda: served.server.stats().outcomes == {"failed": len(refused)})
    assert sorted(logged()) == sorted(refused), logged()


@holds("TL7")
def many_handshakes_at_once(lab: Lab) -> None:
    count = 40 if lab.dispatcher == "fork" else 100  # as many as it runs at once
    start, wrong = threading.Barrier(count), []

    def shake(client: socket.socket, number: int) -> None:
        try:
            start.wait(PATIENCE)
            with served.pass_layers(client) as encrypted:
                served.send(encrypted, b"%d!" % number)
                assert served.receive(encrypted) == b"%d!" % number
        except Exception as error:  # noqa: BLE001 - reported below
            wrong.append(error)

    with lab.serve(lambda _handler, message: message) as served:
        clients = [threading.Thread(target=shake, args=(served.connect(), number)) for number in range(count)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert wrong == []
    served.ended_as({"finished": count})


@holds("TL8")
def a_stop_within_handshakes(lab: Lab) -> None:
    """When the server stops, one client is in the middle of its handshake, and one has said nothing."""
    served = lab.prepare(drain=1.0)
    served.start()
    try:
        with served.connect() as client:
            shaking = in_the_middle(client)
            with served.connect() as silent:
                accepted = 1 if lab.dispatcher == "sync" else 2
                assert within(PATIENCE, lambda: served.server.stats().active == accepted)
                served.server.stop(wait=False)
                shaking.finish(shaking.tls.do_handshake, sends=False)  # its last message goes with the request
                shaking.finish(shaking.tls.write, b"in time\n")
                assert shaking.finish(shaking.tls.read, 100) == b"emit ni"
                assert rest(silent) == b""
        assert served.ended(PATIENCE)
    finally:
        served.stop()
    assert served.outcomes()["finished"] == 1
    assert sum(served.outcomes().values()) == 2


# --- encrypted connections -------------------------------------------------------------------------------------------


@holds("TL9")
def a_renegotiation(lab: Lab) -> None:
    with lab.serve() as served:
        with openssl(served, "-tls1_2") as client:
            _, said = client.communicate(b"R\n", timeout=PATIENCE)
            assert b"no renegotiation" in said, said
        assert served.quiet()
        served.good()


@holds("TL10")
def a_flood_of_key_updates(lab: Lab) -> None:
    count = 1000
    with lab.serve() as served, openssl(served, "-tls1_3") as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stderr is not None
        used = 0
        for number in range(count):
            client.stdin.write(b"K\n")  # asks the server for an update too
            client.stdin.flush()
            while client.stderr.readline() != b"KEYUPDATE\n":
                pass
            if number == count // 4:
                if lab.dispatcher != "sync":
                    served.good(5)
                served.processes()  # now all have imported what they need, which takes memory
                used = memory()
        assert memory() - used < 2_000_000, f"{memory() - used} bytes more"
        client.stdin.write(b"still there\n")
        client.stdin.flush()
        assert b"ereht llits" in client.stdout.read()
        served.good()


def memory() -> int:
    """Return the memory in use by this process and its children in bytes, except that of clients."""
    return sum(map(resident, (os.getpid(), *children())))


def resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        if b"s_client" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@holds("TL11")
def a_record_byte_by_byte(lab: Lab) -> None:
    message = os.urandom(LARGEST // 2 - 1).hex().encode() + b"!"
    with lab.serve() as served:
        with served.connect() as raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = Client(raw)
            client.shake()
            for each in client.unsent(client.tls.write, message + b"\n"):
                raw.send(bytes((each,)))
            received = b""
            while len(received) < len(message):
                received += client.finish(client.tls.read, LARGEST)
            assert received == message[::-1]
        served.good()
    served.ended_as({"finished": 2})


@holds("TL12")
def records_that_are_broken(lab: Lab) -> None:
    """One is longer than allowed, and one was changed on its way."""
    with lab.serve() as served:
        for record in (b"\x17\x03\x03" + (LARGEST + 2049).to_bytes(2, "big") + bytes(100), b"\x17\x03\x03\x00\x40" + bytes(0x40)):
            with served.connect() as raw:
                client = Client(raw)
                client.shake()
                raw.sendall(record)
                rest(raw)
        served.good()
    served.ended_as({"failed": 2, "finished": 1})


@holds("TL13")
def an_end_without_a_goodbye(lab: Lab) -> None:
    """The handler sees the end of the data, with and without close_notify."""
    heard = Counter()

    def handle(handler: Any, message: bytes) -> bytes | None:
        if message == b"cut":
            assert handler.rfile.read() == b""
            heard.add()
            return None
        return message[::-1]

    with lab.serve(handle, blocking=True) as served:
        for count, ends in enumerate((lambda client: socket.socket.shutdown(client, socket.SHUT_WR), ssl.SSLSocket.unwrap), 1):
            with served.pass_layers(served.connect()) as client:
                served.send(client, b"cut")
                ends(client)
                assert within(PATIENCE, lambda count=count: heard.value == count)
        served.good()
    assert lab.log() == "", lab.log()
    served.ended_as({"finished": 3})


def much(_handler: Any, message: bytes) -> bytes:
    return bytes(20_000_000) if message == b"much" else message[::-1]


@holds("TL14")
def clients_that_leave_during_the_reply(lab: Lab) -> None:
    with lab.serve(much, blocking=True) as served:
        for leave in (ssl.SSLSocket.close, resets):
            client = served.pass_layers(served.connect())
            served.send(client, b"much")
            assert client.recv(100)
            leave(client)
        served.good()
    assert lab.log() == "", lab.log()
    served.ended_as({"aborted": 2, "finished": 1})


@holds("TL15")
def a_client_that_never_reads(lab: Lab) -> None:
    with lab.serve(much, limits=Limits(write_stall=0.5)) as served:
        served.good()  # from now on every connection has the limit
        with served.pass_layers(served.connect()) as client:
            served.send(client, b"much")
            assert within(PATIENCE, lambda: served.server.stats().outcomes.get("timed out") == 1)
        served.good()
    served.ended_as({"timed out": 1, "finished": 2})


class Lines(ConversationHandler):
    """Answers each line."""

    def handle_one_request(self) -> None:
        self.wfile.write(self.rfile.readline().rstrip(b"\n")[::-1] + b"\n")


@holds("TL16")
def requests_in_one_record(lab: Lab) -> None:
    with lab.serve(handler=Lines) as served:
        with served.pass_layers(served.connect()) as client:
            whole_buffers = (b"x" * 63 + b"\n") * 100  # the buffer of `rfile` ends where a line does
            for messages in (b"one\ntwo\n", whole_buffers, b"four\nfive\nand half of"):
                client.sendall(messages)
                expected = b"".join(each[::-1] + b"\n" for each in messages.split(b"\n")[:-1])
                received = b""
                while len(received) < len(expected):
                    received += client.recv(10_000)
                assert received == expected
            client.sendall(b" six\n")
            assert client.recv(1000) == b"xis fo flah dna\n"
        assert served.quiet()
    served.ended_as({"finished": 1})
