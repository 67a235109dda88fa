"""``socketkit demo``: runs one handler under each installed dispatcher, over real sockets."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from socketkit.composition import capabilities
from socketkit.composition.catalog import Catalog, Offer
from socketkit.errors import SocketkitError
from socketkit.handlers.base import DatagramRequestHandler, StreamRequestHandler
from socketkit.lifecycles.graceful import Graceful
from socketkit.server import Server
from socketkit.transports.tcp import TCP
from socketkit.transports.udp import UDP

BUDGET = 8.0
"""Seconds that the whole demo may take; an answer missing by then counts as wrong."""

WORDS = (b"change", b"one", b"word")


class Upper(StreamRequestHandler):
    """Answers each line in capitals."""

    def handle(self) -> None:
        """Answer each line until the client sends no more."""
        for line in self.rfile:
            self.wfile.write(line.upper())


class UpperDatagram(DatagramRequestHandler):
    """Answers a datagram in capitals."""

    def handle(self) -> None:
        """Answer the datagram."""
        self.wfile.write(self.rfile.read().upper())


@click.command(epilog="\b\nsocketkit demo")
def demo() -> None:
    """Serve a handler under each installed dispatcher, talk to it, show what happened.

    The servers listen on free ports of the loopback interface. Exit codes: 0 every answer was right, 1 one was not.
    """
    deadline, wrong = time.monotonic() + BUDGET, 0
    click.echo(f"Upper and UpperDatagram answer in capitals; only the dispatcher changes. Sent each time: {_shown(WORDS)}")
    for offer in _dispatchers():
        click.echo(f"\n{offer.name}, from {offer.distribution} {offer.version}".rstrip())
        for scheme, transport, handler, client in (
            ("tcp", TCP("127.0.0.1", 0), Upper, _over_tcp),
            ("udp", UDP("127.0.0.1", 0), UpperDatagram, _over_udp),
        ):
            try:
                took = _try(offer, transport, handler, client, deadline)
            except _Unfit as unfit:
                click.echo(f"  {scheme}  not tried: {unfit}")
            except (SocketkitError, OSError, _Wrong) as error:
                click.echo(f"  {scheme}  WRONG: {error!s:.300}")
                wrong += 1
            else:
                click.echo(f"  {scheme}  {took}")
    if wrong:
        click.echo(f"\n{wrong} of these went wrong", err=True)
        sys.exit(1)
    click.echo("\nNot a line of the handlers changed.")


class _Unfit(Exception):  # noqa: N818 - not an error: it says why a dispatcher is skipped
    """The reason why a dispatcher and a transport are not tried together."""


class _Wrong(Exception):  # noqa: N818 - the same
    """The reply was missing or wrong, or the server did not end by itself."""


def _dispatchers() -> Iterator[Offer]:
    """Yield each dispatcher that can be selected by name; print why others are not tried."""
    catalog = Catalog.load()
    for name in dict.fromkeys(offer.name for offer in catalog.offers("dispatcher")):
        try:
            yield catalog.find("dispatcher", name)
        except SocketkitError as clash:
            click.echo(f"\n{name}\n  not tried: {clash}")
    for plugin in catalog.plugins:
        if plugin.error:
            click.echo(f"\nnot tried: {plugin.error}")


def _try(offer: Offer, transport: Any, handler: Any, client: Callable[[Any, float], Iterator[bytes]], deadline: float) -> str:
    """Serve, send the words once, and return the result as text. Raises: whatever goes wrong."""
    try:
        dispatcher, lifecycle = offer.recipe(), Graceful(1.0)
        capabilities.check([transport], dispatcher, lifecycle)
    except (TypeError, ValueError) as error:  # a TypeError is also what an IncompatibleError is
        raise _Unfit(str(error)) from error
    logging.getLogger("socketkit.forks").setLevel(logging.ERROR)  # it warns of other threads; here they are only ours
    with Server(transport, handler, dispatcher=dispatcher, lifecycle=lifecycle) as server:
        server.start()
        replies: list[bytes] = []
        began = time.perf_counter()
        try:
            replies += client(server.addresses[0], deadline)
        except TimeoutError:
            raise _Wrong(f"the answer did not arrive in time; received only {_shown(replies)}") from None
        took = time.perf_counter() - began
        where = server.urls[0]
        report = server.stop()
    if report is not None and (report.forced or report.stuck):
        raise _Wrong(f"{where} did not stop by itself: {report}")
    if replies != [word.upper() for word in WORDS]:
        raise _Wrong(f"{where} answered {_shown(replies)}")
    return f"{where} answered {_shown(replies)} in {took * 1000:.1f} ms"


def _over_tcp(address: Any, deadline: float) -> Iterator[bytes]:
    """Send the words as lines on one connection, each after the reply to the previous one; yield the replies."""
    with socket.create_connection(address, _left(deadline)) as connection, connection.makefile("rb") as replies:
        for word in WORDS:
            connection.settimeout(_left(deadline))
            connection.sendall(word + b"\n")
            yield replies.readline().rstrip(b"\n")
        connection.shutdown(socket.SHUT_WR)  # closing is not enough: a child forked from this process holds this end too


def _over_udp(address: Any, deadline: float) -> Iterator[bytes]:
    """Send each word as a datagram, after the reply to the previous one; yield the replies."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(address)
        for word in WORDS:
            client.settimeout(_left(deadline))
            client.send(word)
            yield client.recv(1024)


def _left(deadline: float) -> float:
    """Return the seconds that one operation may take: at most two, so that a bad dispatcher leaves time for the others."""
    return max(0.01, min(2.0, deadline - time.monotonic()))


def _shown(words: Iterable[bytes]) -> str:
    return repr(b" ".join(words).decode(errors="replace"))
