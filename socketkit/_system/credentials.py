"""The credentials of a Unix socket's peer, as reported by the kernel, and user and group IDs by name."""

from __future__ import annotations

import errno
import os
import socket
import struct

import attrs

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

_AF_UNIX = getattr(socket, "AF_UNIX", -1)
_SO_PEERCRED = getattr(socket, "SO_PEERCRED", None)
_UCRED = struct.Struct("@iII")

NO_ID = (1 << 32) - 1
"""The ID that the kernel reports when there is no peer: (uid_t) -1, which no user has."""

ARE_KNOWN = _SO_PEERCRED is not None
"""Whether this system reports peer credentials."""


@attrs.frozen
class PeerCredentials:
    """A peer process, and its user and group when it connected."""

    pid: int
    """Its process ID; 0 if it is in another pid namespace. The process may have ended since, and its ID may have been reused."""
    uid: int
    """Its effective user ID. Source: unix(7), SO_PEERCRED."""
    gid: int
    """Its effective group ID."""


def peer_credentials(request: Any) -> PeerCredentials:
    """Return the credentials of the peer of a Unix stream socket, a handler's `request`. A client cannot forge them.

    Raises: OSError if it is not a connected socket of that kind (EOPNOTSUPP, ENOTCONN), or if the system does not report credentials
    (Linux does).
    """
    if _SO_PEERCRED is None or getattr(request, "family", None) != _AF_UNIX:
        raise OSError(errno.EOPNOTSUPP, f"{os.strerror(errno.EOPNOTSUPP)}: only Unix sockets have peer credentials")
    found = PeerCredentials(*_UCRED.unpack(request.getsockopt(socket.SOL_SOCKET, _SO_PEERCRED, _UCRED.size)))
    if found.uid == NO_ID:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    return found


def user_id(user: object) -> int:
    """Return the ID of a user given by name or ID. Raises: ValueError for an unknown name or an invalid ID."""
    if isinstance(user, str):
        try:
            from pwd import getpwnam  # noqa: PLC0415 - missing on Windows, and needed for names only

            return getpwnam(user).pw_uid
        except (ImportError, KeyError, ValueError):
            raise ValueError(f"there is no user named {user!r}") from None
    return _checked(user, "user")


def group_id(group: object) -> int:
    """Return the ID of a group given by name or ID. Raises: ValueError for an unknown name or an invalid ID."""
    if isinstance(group, str):
        try:
            from grp import getgrnam  # noqa: PLC0415 - as above

            return getgrnam(group).gr_gid
        except (ImportError, KeyError, ValueError):
            raise ValueError(f"there is no group named {group!r}") from None
    return _checked(group, "group")


def primary_group(user: object) -> int:
    """Return the ID of the primary group of a user given by name or ID. Raises: ValueError if the user database has no such user."""
    number = user_id(user)
    try:
        from pwd import getpwuid  # noqa: PLC0415 - as above

        return getpwuid(number).pw_gid
    except (ImportError, KeyError):
        raise ValueError(f"user {number} is not in the user database; name its group") from None


def _checked(number: object, what: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < NO_ID:
        raise ValueError(f"{number!r} is not a {what} ID")
    return number
