"""Sockets that outlive a process: those it inherits, those it listens on, and those it passes on.

A service manager or the previous generation passes sockets to a process by the protocol of sd_listen_fds(3): they are the descriptors
from 3 on, ``LISTEN_FDS`` is their number, ``LISTEN_FDNAMES`` their names, and ``LISTEN_PID`` the process they are meant for. A
generation names each socket by the URL of the transport that listens on it, percent-encoded, because ``:`` separates names. It then
waits, at the descriptor ``SOCKETKIT_READY_FD``, for the report that the new generation serves.

The environment variables are read once and then removed, so that no child mistakes them for its own. From then on the descriptors are
closed in every program that this one executes. That happens when the first server opens, or earlier by `receive`.
"""

from __future__ import annotations

import contextlib
import errno
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

MOST = 1 << 20
"""Most descriptors that are looked at. Linux allows a process no more by default. Source: proc_sys_fs(5), nr_open."""

UNNAMED = "unknown"
"""The name of a descriptor that was passed without one. Source: sd_listen_fds_with_names(3)."""


@attrs.define(eq=False)
class Offer:
    """A descriptor passed to this process, or from one of its servers to another, that no server has claimed yet."""

    name: str
    fileno: int
    ours: bool
    """Whether a socketkit server bound it, rather than the service manager: then socketkit removes its path."""
    index: int = 0
    """Its position among the descriptors of the same name."""
    origin: socket.socket | None = None
    """The socket that it duplicates, of another server in this process; None: it was passed from outside."""


@attrs.define(eq=False)
class _Place:
    """Where a socket listens, and whether this process removes its path when closing it."""

    url: str
    ours: bool
    origin: socket.socket | None = None
    order: int = attrs.field(factory=itertools.count().__next__)
    """Order of creation, the only way to tell apart sockets with the same URL, such as port 0."""
    given: bool = False
    """Whether another server of this process has taken over with a copy."""


class _Sockets:
    """The sockets of this process. Thread-safe."""

    def __init__(self) -> None:
        self.changing = threading.RLock()
        self.offers: list[Offer] | None = None  # None: the environment has not been read yet
        self.places: weakref.WeakKeyDictionary[socket.socket, _Place] = weakref.WeakKeyDictionary()
        self.ready_descriptor: int | None = None

    def read(self) -> list[Offer]:
        """Return the unclaimed offers; reads the environment on first use."""
        if self.offers is None:
            self.offers = self._passed()
        return self.offers

    def _passed(self) -> list[Offer]:
        pid, count, names, ready = (os.environ.pop(name, "") for name in _VARIABLES)
        if pid != str(os.getpid()) or not count.isdecimal():
            return []
        if ready.isdecimal():
            with contextlib.suppress(OSError, OverflowError):  # closed, or no descriptor: no process waits
                os.set_inheritable(int(ready), False)
                self.ready_descriptor = int(ready)
        if len(count.lstrip("0")) > len(str(MOST)) or int(count) > MOST:
            raise OSError(errno.EINVAL, f"LISTEN_FDS is {count:.20}, more descriptors than a process can have")
        called, offers = names.split(":") if names else [], list[Offer]()
        for index in range(int(count)):
            with contextlib.suppress(OSError):  # closed: nothing to offer
                os.set_inheritable(FIRST + index, False)
                name = called[index] if len(called) == int(count) else UNNAMED
                alike = sum(offer.name == name for offer in offers)
                offers.append(Offer(name, FIRST + index, ours=self.ready_descriptor is not None, index=alike))
        return offers


_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "SOCKETKIT_READY_FD")

_sockets = _Sockets()


# --- taking ----------------------------------------------------------------------------------------------------------


def encode(url: str) -> str:
    """Return the name under which a generation passes on this URL's socket."""
    return quote(url, safe="")


def receive() -> None:
    """Take what was passed to this process now, so that programs started from now on do not inherit it. Raises: as `claim`."""
    with _sockets.changing:
        _sockets.read()


def names() -> list[str]:
    """Return the names of all unclaimed descriptors."""
    with _sockets.changing:
        return [offer.name for offer in _sockets.read()]


def claim(url: str, name: str | None = None, index: int = 0) -> socket.socket | None:
    """Claim the socket that was passed on for this URL, or else the one named `name`; None if there is none.

    index: which one, of several with that name. Owner: the caller.
    Raises: OSError when the descriptor is not a socket, or ``LISTEN_FDS`` is impossibly large.
    """
    with _sockets.changing:
        offers = _sockets.read()
        found = [offer for offer in offers if offer.name == encode(url)]
        found = found or [offer for offer in offers if (offer.name, offer.index) == (name, index)]
        return _take(url, found[0]) if found else None


def claim_descriptor(url: str, fileno: int) -> socket.socket | None:
    """Claim the socket that was passed on for this URL, or else the one with that descriptor; None if another server has that one.

    Owner: the caller. Raises: OSError when the descriptor is closed or not a socket.
    """
    with _sockets.changing:
        found = claim(url)
        if found is not None:
            return found
        known = next((offer for offer in _sockets.read() if offer.fileno == fileno), None)
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
    """Record that a server listens on a socket that it has bound itself."""
    with _sockets.changing:
        _sockets.places[sock] = _Place(url, ours=True)


def leaves_its_path(sock: socket.socket) -> bool:
    """Return whether another process or server shares the socket or has bound it, so that closing it must not remove its path."""
    place = _sockets.places.get(sock)  # no lock: also called in forked children, where it may have been held at the fork
    return place is not None and not place.ours


def estate() -> list[tuple[str, int]]:
    """Return the names and descriptors to pass to the next generation: sockets this process listens on, and those it never claimed.

    Each socket is named once, also while one of this process's servers takes it over from another.
    """
    with _sockets.changing:
        places = sorted(_sockets.places.items(), key=lambda item: item[1].order)
        listening = [(sock, place) for sock, place in places if sock.fileno() != -1 and not place.given and place.origin is None]
        unclaimed = [(offer.name, offer.fileno) for offer in _sockets.read() if offer.origin is None]
        return [(encode(place.url), sock.fileno()) for sock, place in listening] + unclaimed


def hand_over() -> None:
    """Record that another process listens on all sockets from now on, and so removes their paths."""
    with _sockets.changing:
        for place in _sockets.places.values():
            place.ours = False


@contextlib.contextmanager
def offering(sockets: Iterable[socket.socket]) -> Iterator[None]:
    """Pass these sockets on within the process: a server that opens one of their URLs inside the block gets a copy of the socket.

    If the block ends without an error, the new owner of a copy removes the socket's path; otherwise the old owner does.
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
            for offer in set(offers).intersection(_sockets.read()):
                _sockets.read().remove(offer)
                os.close(offer.fileno)


# --- the previous generation -----------------------------------------------------------------------------------------


def report_ready() -> bool:
    """Tell the previous generation that this one serves; return whether it was waiting for that."""
    with _sockets.changing:
        _sockets.read()
        descriptor, _sockets.ready_descriptor = _sockets.ready_descriptor, None
    if descriptor is None:
        return False
    try:
        os.write(descriptor, b"\n")
    except OSError:  # it has ended
        return False
    finally:
        os.close(descriptor)
    return True


def close_unclaimed() -> list[str]:
    """Close unclaimed sockets of the previous generation; return their URLs.

    Otherwise clients could still connect to them, and would wait for ever.
    """
    with _sockets.changing:
        offers = _sockets.read()
        unclaimed = [offer for offer in offers if offer.ours]
        for offer in unclaimed:
            offers.remove(offer)
            os.close(offer.fileno)
    return [unquote(offer.name) for offer in unclaimed]
