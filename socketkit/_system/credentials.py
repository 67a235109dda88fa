"""Who is at the other end of a Unix socket, as the kernel knows it, and users by their names."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

import attrs

_AF_UNIX = getattr(socket, "AF_UNIX", -1)
_SO_PEERCRED = getattr(socket, "SO_PEERCRED", None)
_UCRED = struct.Struct("@iII")

NO_ID = (1 << 32) - 1
"""What the kernel says where there is nobody, and which is nobody's number: (uid_t) -1."""

ARE_KNOWN = _SO_PEERCRED is not None
"""Whether this system tells."""


@attrs.frozen
class PeerCredentials:
    """A process and whose it was when it connected."""

    pid: int
    """Its number; 0 if it is in another pid namespace. It may have ended, and its number be another's, by now."""
    uid: int
    """Its effective user. Source: unix(7), SO_PEERCRED."""
    gid: int
    """Its effective group."""


def peer_credentials(request: Any) -> PeerCredentials:
    """Return who connected the Unix stream socket that a handler has as its `request`. Nobody can forge it.

    Raises: OSError if it is no connected socket of that kind (EOPNOTSUPP, ENOTCONN), or the system does not tell: Linux does.
    """
    if _SO_PEERCRED is None or getattr(request, "family", None) != _AF_UNIX:
        raise OSError(errno.EOPNOTSUPP, f"{os.strerror(errno.EOPNOTSUPP)}: only of Unix sockets is it known who is at the other end")
    found = PeerCredentials(*_UCRED.unpack(request.getsockopt(socket.SOL_SOCKET, _SO_PEERCRED, _UCRED.size)))
    if found.uid == NO_ID:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    return found


def user_id(user: object) -> int:
    """Return the number of a user given by name or number. Raises: ValueError."""
    if isinstance(user, str):
        try:
            from pwd import getpwnam  # noqa: PLC0415 - not on Windows, and for those who name any

            return getpwnam(user).pw_uid
        except (ImportError, KeyError, ValueError):
            raise ValueError(f"there is no user named {user!r}") from None
    if isinstance(user, bool) or not isinstance(user, int) or not 0 <= user < NO_ID:
        raise ValueError(f"{user!r} is no user's number")
    return user
