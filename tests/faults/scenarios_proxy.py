"""The scenarios of the catalogue's rows about PROXY headers; see `scenarios`."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from faults.lab import HEADER, Counter, Lab, Served
from faults.register import holds
from faults.scenarios_tls import Client, rest
from layers.proxy_headers import CRC32C, NOOP, SIGNATURE, block, field, summed, v4
from socketkit import Limits

V2 = summed(block(1, 0x11, v4()))
CLIENT = ("192.0.2.7", 50000)
"""The address in both headers."""

MALFORMED = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 50000\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 443" + bytes(67),  # as long as allowed, without an end
    block(1, 0x11, v4() + field(NOOP, bytes(5000))),  # longer than allowed
    block(1, 0x11, v4(), length=11) + bytes(1),  # ends within its addresses
    block(1, 0x11, v4() + field(CRC32C, bytes(4))),  # the wrong checksum
    block(1, 0x11, v4() + field(CRC32C, bytes(4))[:-1]),  # ends within a field
    block(1, 0x11, v4(), version=3),
    SIGNATURE[:5] + b"PROXY " + bytes(20),
)


def tell(handler: Any, message: bytes) -> bytes:
    """Return the message and the client's address."""
    host, port = handler.client_address[:2]
    return b"%s from %s %d" % (message, host.encode(), port)


def told(message: bytes, client_address: Any) -> bytes:
    return b"%s from %s %d" % (message, client_address[0].encode(), client_address[1])


def ask(served: Served, *pieces: bytes) -> tuple[bytes, Any]:
    """Send pieces from a new client; return the whole reply, and the client's own address."""
    with served.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):  # the server may have had enough
            for piece in pieces:
                client.sendall(piece)
        own = client.getsockname()
        return rest(client), own


@holds("PX1")
def a_peer_that_is_not_trusted(lab: Lab) -> None:
    handled = Counter()
    with lab.serve(lambda *_: handled.add(), options={"proxy.trusted": "10.0.0.0/8"}) as served:
        for header in (HEADER, V2, b""):
            assert ask(served, header + b"hello\n")[0] == b""
    assert handled.value == 0
    served.ended_as({"failed": 3})


@holds("PX2")
def a_header_byte_by_byte(lab: Lab) -> None:
    with lab.serve(tell) as served:
        for header in (HEADER, V2):
            message = header + b"hello\n"
            reply, _ = ask(served, *(message[place : place + 1] for place in range(len(message))))
            assert reply == told(b"hello", CLIENT)
    served.ended_as({"finished": 2})


@holds("PX3")
def half_a_header(lab: Lab) -> None:
    """Others are served while a client stops in its header, and that ends at the deadline."""
    with lab.serve(limits=Limits(handshake=0.5)) as served:
        for header in (HEADER[:-1], block(1, 0x11, v4(), length=300)):  # the second one is not as long as it says
            with served.connect() as client:
                client.sendall(header)
                if lab.dispatcher != "sync":  # which serves one client after another
                    served.good()
                assert rest(client) == b""
        served.good()
    served.ended_as({"timed out": 2, "finished": 1 if lab.dispatcher == "sync" else 3})


@holds("PX4")
def a_client_that_leaves_in_its_header(lab: Lab) -> None:
    with lab.serve() as served:
        for header in (HEADER, V2):
            for end in (0, 1, len(header) - 1):
                with served.connect() as client:
                    client.sendall(header[:end])
                    client.shutdown(socket.SHUT_WR)
                    assert rest(client) == b""
        served.good()
    assert lab.log() == "", lab.log()
    outcomes = served.outcomes()
    assert (outcomes.get("aborted"), outcomes.get("finished")) == (6, 1), outcomes


@holds("PX5")
def headers_that_are_malformed(lab: Lab) -> None:
    handled = Counter()

    def handle(_handler: Any, message: bytes) -> bytes:
        handled.add()
        return message[::-1]

    with lab.serve(handle) as served:
        for header in MALFORMED:
            assert ask(served, header + b"hello\n")[0] == b"", header
        served.good()
    assert handled.value == 1
    assert lab.log() == "", lab.log()
    served.ended_as({"failed": len(MALFORMED), "finished": 1})


@holds("PX6")
def headers_without_an_address(lab: Lab) -> None:
    with lab.serve(tell) as served:
        for header in (b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN whatever\r\n", block(0, 0), block(0, 0x11, v4()), block(1, 0)):
            reply, own = ask(served, header + b"hello\n")
            assert reply == told(b"hello", own), header
    served.ended_as({"finished": 5})


@holds("PX7")
def a_header_and_a_request_in_one_segment(lab: Lab) -> None:
    message = os.urandom(5000).hex().encode()
    with lab.serve(tell) as served:
        for header in (HEADER, V2):
            assert ask(served, header + message + b"\n")[0] == told(message, CLIENT)
    served.ended_as({"finished": 2})


@holds("PX8")
def a_second_header(lab: Lab) -> None:
    with lab.serve(tell) as served:
        for header in (HEADER, V2):
            second = b"PROXY TCP4 198.51.100.9 192.0.2.1 1 2\r"
            assert ask(served, header + second + b"\n")[0] == told(second, CLIENT)
    served.ended_as({"finished": 2})


@holds("PX9")
def a_header_and_a_hello_in_one_segment(lab: Lab) -> None:
    with lab.serve(tell) as served:
        for header in (HEADER, V2):
            with served.connect() as raw:
                client = Client(raw)
                raw.sendall(header + client.hello())
                client.shake()
                client.finish(client.tls.write, b"hello\n")
                assert client.finish(client.tls.read, 1000) == told(b"hello", CLIENT)
    served.ended_as({"finished": 2})
