"""Limits of a server: how much it takes, from which peers, and for how long. They are enforced from the server's start on."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from socketkit._system.credentials import ARE_KNOWN, user_id
from socketkit.seams import Seconds
from socketkit.seams.validators import Validator, at_least, check_each, frozen_list, is_number, seconds_or_none, some_seconds_or_none

_some_or_none: Validator = attrs.validators.optional(at_least(1))


def _networks(_recipe: Any, field: Any, value: Any) -> None:
    from ipaddress import ip_network  # noqa: PLC0415 - needed only with networks

    check_each(ip_network, field, value, "networks, such as 10.0.0.0/8")


def _users(_recipe: Any, field: Any, value: Any) -> None:
    if value and not ARE_KNOWN:
        raise ValueError(f"{field.name} needs a system that reports the user of a Unix peer (SO_PEERCRED); leave it empty")
    check_each(user_id, field, value, "users, by name or number")


def _share(_recipe: Any, field: Any, value: Any) -> None:
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{field.name} must be a share of max_connections, from 0 to less than 1, not {value!r}")


def _rate(_recipe: Any, field: Any, value: Any) -> None:
    if not is_number(value) or value <= 0:
        raise ValueError(f"{field.name} must be a number of requests a second, more than 0, or none for no limit, not {value!r}")


@attrs.frozen(kw_only=True)
class Limits:
    """What a composed server admits, and its deadlines for clients. Deadlines are totals: slowly sent bytes do not extend them."""

    max_connections: int | None = attrs.field(default=16384, validator=_some_or_none)
    """Most connections open at a time, including those parked without a thread; None: no limit. Datagrams do not count."""
    overflow: Literal["wait", "reject", "shed", "early"] = attrs.field(
        default="wait", validator=attrs.validators.in_(("wait", "reject", "shed", "early"))
    )
    """What happens at `max_connections`. wait: leave clients in the kernel's queue. reject: turn each new client away at once.
    shed: as wait, but close the conversation that has been idle longest if that makes room for a new connection.
    early: as reject, but turn some away at random before the bound, and more of them the nearer it is."""
    early: float = attrs.field(default=0.5, validator=_share)
    """Share of `max_connections` above which `overflow="early"` turns some away: none at this share, all at `max_connections`."""
    reply: str = attrs.field(default="", validator=attrs.validators.instance_of(str))
    """Text sent, as UTF-8, to a client that any limit turns away."""
    max_per_peer: int | None = attrs.field(default=None, validator=_some_or_none)
    """Most connections open at a time from one peer; more are turned away. None: no limit. Unix peers are not counted."""
    v4_prefix: int = attrs.field(default=32, validator=at_least(1, 32))
    """Leading bits of an IPv4 address that identify a peer. Also applies to IPv4 addresses mapped to IPv6."""
    v6_prefix: int = attrs.field(default=64, validator=at_least(1, 128))
    """Leading bits of an IPv6 address that identify a peer."""
    allow: tuple[str, ...] = attrs.field(default=(), converter=frozen_list, validator=_networks)
    """Networks that peers may connect from; empty: all. Does not apply to Unix peers: use `allow_users` for them."""
    deny: tuple[str, ...] = attrs.field(default=(), converter=frozen_list, validator=_networks)
    """Networks that peers may not connect from, even if `allow` lists them."""
    allow_users: tuple[str | int, ...] = attrs.field(default=(), converter=frozen_list, validator=_users)
    """Users, by name or number, that may connect to Unix stream sockets; empty: all. Linux only."""
    rate: float | None = attrs.field(default=None, validator=attrs.validators.optional(_rate))
    """Connections and datagrams taken per second, on average; more wait in the kernel's queues. None: no limit."""
    burst: int | None = attrs.field(default=None, validator=_some_or_none)
    """Most requests taken at once after a quiet spell; None: one second's worth of `rate`."""
    line: int | None = attrs.field(default=65536, validator=_some_or_none)
    """Longest line in bytes, with its newline, that a `StreamRequestHandler` reads by `readline()` without a size or by iterating over
    `rfile`; a longer line fails the request. None: no limit."""
    first_byte: Seconds | None = attrs.field(default=30.0, validator=some_seconds_or_none)
    """Time that a client has to send its first byte, unless the handler speaks first; None: no limit."""
    handshake: Seconds | None = attrs.field(default=10.0, validator=some_seconds_or_none)
    """Time for all layers of a connection together, from its acceptance; None: no limit. Matters only for transports with layers."""
    request: Seconds | None = attrs.field(default=3600.0, validator=some_seconds_or_none)
    """Time for a whole connection, or for each request of a conversation; None: no limit."""
    write_stall: Seconds | None = attrs.field(default=60.0, validator=some_seconds_or_none)
    """Time that a handler waits for a client that reads nothing of what it is sent; None: no limit."""
    idle: Seconds | None = attrs.field(default=None, validator=seconds_or_none)
    """Time that a conversation may wait for its next request; None: the dispatcher's setting."""

    def shared_by(self, processes: int) -> Limits:
        """Return the limits of each of `processes` that serve together. Shares are rounded up: together they are at least the whole."""
        return attrs.evolve(
            self,
            max_connections=self.max_connections and -(-self.max_connections // processes),
            rate=self.rate and self.rate / processes,
            burst=self.burst and -(-self.burst // processes),
        )

    def narrowed(self, connections: int | None, overflow: Literal["wait", "reject", "shed"], reply: str) -> Limits:
        """Return a copy with this overflow and reply, bounded by `connections` if that is lower than `max_connections`."""
        most = min((each for each in (connections, self.max_connections) if each is not None), default=None)
        return attrs.evolve(self, max_connections=most, overflow=overflow, reply=reply)
