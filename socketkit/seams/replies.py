"""The socket that datagrams are answered on, if a reply has to leave from a certain address."""

from __future__ import annotations

from typing import Any

import attrs

from socketkit.seams.types import Address


@attrs.define(eq=False)
class ReplySocket:
    """What a datagram listener that is bound to several addresses hands out in place of its socket.

    `sendto`, when it sends to the datagram's sender, uses the address that the datagram came to as the source. Everything else is that
    of `socket`, which all requests of the listener share. A dispatcher that replaces the socket replaces that attribute.
    """

    socket: Any
    """The listener's socket."""
    client_address: Address
    """The sender of the datagram."""
    source: tuple[int, int, bytes]
    """The control message that sets the source of a reply, as `sendmsg` takes it."""

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        """As `socket.sendto`: ``sendto(data, address)`` or ``sendto(data, flags, address)``."""
        *flags, address = flags_and_address
        if address != self.client_address:
            sent: int = self.socket.sendto(data, *flags_and_address)
        else:
            sent = self.socket.sendmsg([data], [self.source], *(flags or [0]), address)
        return sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)
