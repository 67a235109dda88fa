"""How much a server takes on, from whom, and how long it puts up with a client. What enforces it is made when a server starts."""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs

from socketkit._system.credentials import ARE_KNOWN, user_id
from socketkit.seams import Seconds
from socketkit.seams.validators import Validator, at_least, seconds_or_none, some_seconds_or_none

_some_or_none: Validator = attrs.validators.optional(at_least(1))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _networks(_recipe: Any, field: Any, value: Any) -> None:
    from ipaddress import ip_network  # noqa: PLC0415 - for those who name any

    if not isinstance(value, tuple):
        raise ValueError(f"{field.name} must be a list of networks, such as 10.0.0.0/8, not {value!r}")  # noqa: TRY004 - as every validator here
    for each in value:
        try:
            ip_network(each)
        except ValueError as error:
            raise ValueError(f"{field.name} must be a list of networks, such as 10.0.0.0/8: {error}") from None


def _users(_recipe: Any, field: Any, value: Any) -> None:
    if not isinstance(value, tuple):
        raise ValueError(f"{field.name} must be a list of users, by name or number, not {value!r}")  # noqa: TRY004 - as every validator here
    if value and not ARE_KNOWN:
        raise ValueError(f"{field.name} needs a system that tells who is at the other end of a Unix socket (SO_PEERCRED); leave it empty")
    for each in value:
        try:
            user_id(each)
        except ValueError as error:
            raise ValueError(f"{field.name} must be a list of users, by name or number: {error}") from None


def _share(_recipe: Any, field: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{field.name} must be a share of max_connections, from 0 to less than 1, not {value!r}")


def _rate(_recipe: Any, field: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{field.name} must be a number of requests a second, more than 0, or nothing for no limit, not {value!r}")


@attrs.frozen(kw_only=True)
class Limits:
    """What a composed server admits, and the deadlines of what it admitted. Each deadline is a total: no drip of bytes puts it off."""

    max_connections: int | None = attrs.field(default=16384, validator=_some_or_none)
    """Connections open at a time, those that wait without a thread included; None: as many as come. Datagrams do not count."""
    overflow: Literal["wait", "reject", "shed", "early"] = attrs.field(
        default="wait", validator=attrs.validators.in_(("wait", "reject", "shed", "early"))
    )
    """With so many open: leave clients in the kernel's queue, or turn each new one away at once.
    shed: as wait, but close the conversation that has been idle longest if that makes room for a new connection.
    early: as reject, but some are turned away before, at random, ever more the fewer may still be open."""
    early: float = attrs.field(default=0.5, validator=_share)
    """The share of `max_connections` from which on `overflow="early"` turns some away: there it is nobody, at the end everybody."""
    reply: str = attrs.field(default="", validator=attrs.validators.instance_of(str))
    """What a client that is turned away by any limit gets to read, as UTF-8."""
    max_per_peer: int | None = attrs.field(default=None, validator=_some_or_none)
    """Connections open at a time from one peer; further ones are turned away. None: no such limit. Unix peers are not counted."""
    v4_prefix: int = attrs.field(default=32, validator=at_least(1, 32))
    """How many leading bits make an IPv4 peer, one that comes as a v4-mapped IPv6 address included."""
    v6_prefix: int = attrs.field(default=64, validator=at_least(1, 128))
    """The same for IPv6."""
    allow: tuple[str, ...] = attrs.field(default=(), converter=_frozen, validator=_networks)
    """Networks that peers may come from; empty: from everywhere. Unix peers come from none: for them there is `allow_users`."""
    deny: tuple[str, ...] = attrs.field(default=(), converter=_frozen, validator=_networks)
    """Networks that peers may not come from, even if they are allowed."""
    allow_users: tuple[str | int, ...] = attrs.field(default=(), converter=_frozen, validator=_users)
    """Users, by name or number, that peers on Unix stream sockets may be; empty: everybody who gets there. Linux only."""
    rate: float | None = attrs.field(default=None, validator=attrs.validators.optional(_rate))
    """Connections and datagrams taken in a second, on an average; more wait in the kernel's queues. None: as many as come."""
    burst: int | None = attrs.field(default=None, validator=_some_or_none)
    """How many may be taken at once after a pause; None: as many as in one second."""
    line: int | None = attrs.field(default=65536, validator=_some_or_none)
    """Bytes of the longest line, its end included, that a `StreamRequestHandler` reads by a `readline()` without a size, or by going
    through its `rfile`; one with a longer line fails. None: as long as it is."""
    first_byte: Seconds | None = attrs.field(default=30.0, validator=some_seconds_or_none)
    """How long a client may take to send its first byte, if the handler does not speak first; None: for ever."""
    request: Seconds | None = attrs.field(default=3600.0, validator=some_seconds_or_none)
    """How long a connection may take as a whole, or each request of a conversation; None: for ever."""
    write_stall: Seconds | None = attrs.field(default=60.0, validator=some_seconds_or_none)
    """How long a handler waits for a client that takes nothing of what it is sent; None: for ever."""
    idle: Seconds | None = attrs.field(default=None, validator=seconds_or_none)
    """How long a conversation may wait for its next request; None: as the dispatcher says."""

    def shared_by(self, processes: int) -> Limits:
        """Return the share of each of so many processes that serve together; all shares are at least as much as the whole."""
        return attrs.evolve(
            self,
            max_connections=self.max_connections and -(-self.max_connections // processes),
            rate=self.rate and self.rate / processes,
            burst=self.burst and -(-self.burst // processes),
        )

    def narrowed(self, connections: int | None, overflow: Literal["wait", "reject", "shed"], reply: str) -> Limits:
        """Return the same with a bound of connections, if it is lower, and what becomes of those beyond it."""
        most = min((each for each in (connections, self.max_connections) if each is not None), default=None)
        return attrs.evolve(self, max_connections=most, overflow=overflow, reply=reply)
