"""The sockets of a process that outlive it: those it was started with, those it listens on, and what becomes of them.

A process is started with sockets by a service manager or by the generation before it, both by the protocol of sd_listen_fds(3): they
are the descriptors from 3 on, ``LISTEN_FDS`` says how many, ``LISTEN_FDNAMES`` what they are called, and ``LISTEN_PID`` for whom they
are. A generation calls each by the URL of the transport that listens on it, percent-encoded, because ``:`` separates names; and it
waits, at the descriptor ``SOCKETKIT_READY_FD``, to be told that it is not needed any more.

What the environment says is read once and then taken out of it, so that no child takes it for its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import weakref
from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote

import attrs

FIRST = 3
"""The first descriptor that is passed on. Source: sd_listen_fds(3)."""

UNNAMED = "unknown"
"""What a descriptor is called if nobody has given it a name. Source: sd_listen_fds_with_names(3)."""


@attrs.define(eq=False)
class Offer:
    """A descriptor that was passed to this process, or from one of its servers to another, and that nobody listens on yet."""

    name: str
    fileno: int
    ours: bool
    """Whether a server of ours has bound it, and not the service manager: then its path is ours to remove."""
    index: int = 0
    """Which one it was, of all those of its name."""
    origin: socket.socket | None = None
    """The socket of another server of this process that it is a copy of."""


@attrs.define(eq=False)
class _Place:
    """Where a socket listens, and whether what it leaves behind is to be removed by whoever closes it here."""

    url: str
    ours: bool
    origin: socket.socket | None = None
    order: int = attrs.field(factory=itertools.count().__next__)
    """Which came first, of those with the same URL: only that tells one port 0 from another."""
    given: bool = False
    """Whether another server of this process has a copy, and listens there from now on."""


class _Sockets:
    """The sockets of this process. All of it may be used from any thread."""

    def __init__(self) -> None:
        self.changing = threading.RLock()
        self.offers: list[Offer] | None = None  # None: the environment was not read yet
        self.places: weakref.WeakKeyDictionary[socket.socket, _Place] = weakref.WeakKeyDictionary()
        self.ready_descriptor: int | None = None

    def read(self) -> list[Offer]:
        """Return what is on offer, after reading the environment the first time."""
        if self.offers is None:
            self.offers = []
            pid, count, names, ready = (os.environ.pop(name, "") for name in _VARIABLES)
            if pid == str(os.getpid()) and count.isdecimal():
                self._read(int(count), names, ready)
        return self.offers

    def _read(self, count: int, names: str, ready: str) -> None:
        assert self.offers is not None  # noqa: S101 - see above
        called = names.split(":") if names else []
        if ready.isdecimal():
            with contextlib.suppress(OSError):  # closed: nobody waits
                os.set_inheritable(int(ready), False)
                self.ready_descriptor = int(ready)
        for index in range(count):
            with contextlib.suppress(OSError):  # closed: there is nothing to offer
                os.set_inheritable(FIRST + index, False)
                name = called[index] if len(called) == count else UNNAMED
                ours = self.ready_descriptor is not None
                self.offers.append(Offer(name, FIRST + index, ours, sum(offer.name == name for offer in self.offers)))


_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "SOCKETKIT_READY_FD")

_sockets = _Sockets()


# --- taking ----------------------------------------------------------------------------------------------------------


def encode(url: str) -> str:
    """Return the name under which a generation passes on the socket of this URL."""
    return quote(url, safe="")


def names() -> list[str]:
    """Return the names of all that is on offer."""
    with _sockets.changing:
        return [offer.name for offer in _sockets.read()]


def claim(url: str, name: str | None = None, index: int = 0) -> socket.socket | None:
    """Take the socket that was passed on for this URL, or else the one of that name; None if there is none.

    index: which one, of several of the same name. Owner: the caller. Raises: OSError when the descriptor is no socket.
    """
    with _sockets.changing:
        offers = _sockets.read()
        found = [offer for offer in offers if offer.name == encode(url)]
        if not found and name is not None:
            found = [offer for offer in offers if (offer.name, offer.index) == (name, index)]
        return _take(url, found[0]) if found else None


def claim_descriptor(url: str, fileno: int) -> socket.socket | None:
    """Take the socket that was passed on for this URL, or else the one with that descriptor; None if that one is somebody else's.

    Owner: the caller. Raises: OSError when the descriptor is closed, or no socket.
    """
    with _sockets.changing:
        found = claim(url)
        if found is not None:
            return found
        offers = _sockets.read()
        known = next((offer for offer in offers if offer.fileno == fileno), None)
        if known is None and fileno not in {sock.fileno() for sock in _sockets.places}:
            return _adopt(url, fileno, ours=False)
        return None if known is None or known.ours else _take(url, known)


def _take(url: str, offer: Offer) -> socket.socket:
    sock = _adopt(url, offer.fileno, ours=offer.ours, origin=offer.origin)
    _sockets.read().remove(offer)
    return sock


def _adopt(url: str, fileno: int, *, ours: bool, origin: socket.socket | None = None) -> socket.socket:
    sock = socket.socket(fileno=fileno)
    sock.set_inheritable(False)
    _sockets.places[sock] = _Place(url, ours, origin)
    return sock


# --- passing on ------------------------------------------------------------------------------------------------------


def listens(url: str, sock: socket.socket) -> None:
    """Take notice that a server listens on a socket that it has bound itself."""
    with _sockets.changing:
        _sockets.places[sock] = _Place(url, ours=True)


def leaves_its_path(sock: socket.socket) -> bool:
    """Return whether somebody else listens on the socket too, or has bound it, so that closing it here shall remove nothing."""
    place = _sockets.places.get(sock)  # without the lock: also called in children, whose parent may have held it as they were forked
    return place is not None and not place.ours


def estate() -> list[tuple[str, int]]:
    """Return all that a next generation gets: names and descriptors of what this process listens on, and of what it never claimed."""
    with _sockets.changing:
        places = sorted(_sockets.places.items(), key=lambda item: item[1].order)
        listening = [(encode(place.url), sock.fileno()) for sock, place in places if sock.fileno() != -1 and not place.given]
        return listening + [(offer.name, offer.fileno) for offer in _sockets.read()]


def hand_over() -> None:
    """Take notice that another process listens on all of it from now on."""
    with _sockets.changing:
        for place in _sockets.places.values():
            place.ours = False


@contextlib.contextmanager
def offering(sockets: Iterable[socket.socket]) -> Iterator[None]:
    """Pass these sockets on within the process: whoever opens one of their URLs inside the block gets a copy of the socket.

    If the block ends well, what a socket leaves behind is to be removed by whoever has taken the copy; else by whoever had it before.
    """
    offers = []
    with _sockets.changing:
        for sock in sockets:
            place = _sockets.places.get(sock)
            if place is not None:
                offers.append(Offer(encode(place.url), sock.dup().detach(), ours=False, origin=sock))
        _sockets.read().extend(offers)
    try:
        yield
        with _sockets.changing:
            for place in _sockets.places.values():
                if place.origin is not None:
                    before = _sockets.places[place.origin]
                    place.ours, place.order, place.origin = before.ours, before.order, None
                    before.ours, before.given = False, True
    finally:
        with _sockets.changing:
            for offer in offers:
                if offer in _sockets.read():
                    _sockets.read().remove(offer)
                    os.close(offer.fileno)


# --- the generation before -------------------------------------------------------------------------------------------


def report_ready() -> bool:
    """Tell the generation before that this one serves; return whether there is one that was waiting for it."""
    with _sockets.changing:
        _sockets.read()
        descriptor, _sockets.ready_descriptor = _sockets.ready_descriptor, None
    if descriptor is None:
        return False
    try:
        os.write(descriptor, b"\n")
    except OSError:  # it is gone
        return False
    finally:
        os.close(descriptor)
    return True


def close_unclaimed() -> list[str]:
    """Close what the generation before has passed on and nobody claimed; return their URLs.

    Clients could still connect to it, and would wait for ever.
    """
    with _sockets.changing:
        offers = _sockets.read()
        unclaimed = [offer for offer in offers if offer.ours]
        for offer in unclaimed:
            offers.remove(offer)
            os.close(offer.fileno)
    return [unquote(offer.name) for offer in unclaimed]
