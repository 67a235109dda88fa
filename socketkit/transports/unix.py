"""Unix sockets, stream and datagram, and the care of their paths."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import attrs

from socketkit.errors import ListenError
from socketkit.logs import Log
from socketkit.seams import Kind
from socketkit.seams.validators import at_least, permission_bits, socket_path
from socketkit.transports._sockets import LARGEST, DatagramListener, StreamListener, inherit_or_open, open_socket, unix_url

log = Log("socketkit.unix")

_AF_UNIX = getattr(socket, "AF_UNIX", -1)

PATIENCE = 3.0
"""Most seconds to wait for another server that is binding a path in the same folder."""


@attrs.frozen
class UnixStream:
    """Connections to a path, or to an abstract name that starts with ``@`` (Linux)."""

    path: str = attrs.field(validator=socket_path)
    """File name, or ``@`` and an abstract name. A socket left behind by an ended program is replaced; for anything else, `open` raises."""
    backlog: int = attrs.field(default=1024, kw_only=True, validator=at_least(1, LARGEST))
    """Most connections that may wait in the kernel."""
    mode: int | None = attrs.field(default=None, kw_only=True, validator=permission_bits)
    """Permission bits that the path is created with; None: set by the umask. Abstract names have none."""

    kind: ClassVar[Kind] = "stream"
    requires: ClassVar[frozenset[str]] = frozenset({"sockets", "Unix sockets"})

    @property
    def url(self) -> str:
        """``unix:///path`` or ``unix:@name``."""
        return unix_url("unix", self.path)

    def open(self) -> StreamListener:
        """Return the listening socket. Raises: ListenError."""
        sock, unlink = _open(self, socket.SOCK_STREAM, lambda sock: sock.listen(self.backlog))
        return StreamListener(sock, self.url, on_close=unlink)


@attrs.frozen
class UnixDatagram:
    """Datagrams to a path, or to an abstract name that starts with ``@`` (Linux).

    A sender that has not bound a name of its own cannot be answered: its address is None.
    """

    path: str = attrs.field(validator=socket_path)
    """As for `UnixStream`."""
    mode: int | None = attrs.field(default=None, kw_only=True, validator=permission_bits)
    """As for `UnixStream`."""
    max_packet_size: int = attrs.field(default=65535, kw_only=True, validator=at_least(1))
    """Largest datagram that arrives whole, in bytes."""

    kind: ClassVar[Kind] = "datagram"
    requires: ClassVar[frozenset[str]] = frozenset({"sockets", "Unix sockets"})

    @property
    def url(self) -> str:
        """``unix-dgram:///path`` or ``unix-dgram:@name``."""
        return unix_url("unix-dgram", self.path)

    def open(self) -> DatagramListener:
        """Return the bound socket. Raises: ListenError."""
        sock, unlink = _open(self, socket.SOCK_DGRAM)
        return DatagramListener(sock, self.url, self.max_packet_size, on_close=unlink)


def _open(
    recipe: UnixStream | UnixDatagram, kind: int, activate: Callable[[socket.socket], object] = lambda _sock: None
) -> tuple[socket.socket, Callable[[], None]]:
    """Return a socket that listens at the path, and a function that removes the path. Raises: ListenError."""
    bound: list[os.stat_result] = []  # status of the path right after this process bound it
    sock = inherit_or_open(recipe.url, kind, lambda: _bind(recipe, kind, activate, bound), activate)
    return sock, _unlinker(recipe.path, bound)


def _bind(
    recipe: UnixStream | UnixDatagram, kind: int, activate: Callable[[socket.socket], object], bound: list[os.stat_result]
) -> socket.socket:
    """Return the bound and activated socket; append the status of its path to `bound`. Raises: ListenError."""
    url, path, mode = recipe.url, recipe.path, recipe.mode
    if path.startswith("@"):
        return open_socket(url, _AF_UNIX, kind, lambda sock: sock.bind("\0" + path[1:]))
    limit = 107 if sys.platform == "linux" else 103  # sun_path less its terminating zero; source: unix(7)
    length = len(os.fsencode(path))
    if length > limit:
        reason, remedy = f"the path has {length} bytes", f"use one of at most {limit}, or an abstract name (unix:@name)"
        raise ListenError(errno.ENAMETOOLONG, url, reason, remedy)

    def prepare(sock: socket.socket) -> None:
        if mode is not None and sys.platform == "linux":
            os.fchmod(sock.fileno(), mode)  # before bind: the path never exists with more permissions
        sock.bind(path)
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.EADDRINUSE, "another program has replaced the socket at the path")
        if mode is not None and stat.S_IMODE(found.st_mode) != mode:  # bind(2) has taken away what the umask has
            _set_mode(path, mode, found)
        bound.append(found)
        activate(sock)

    with _alone_in_folder_of(path):
        _remove_stale(url, path, kind)
        return open_socket(url, _AF_UNIX, kind, prepare)


@contextlib.contextmanager
def _alone_in_folder_of(path: str) -> Iterator[None]:
    """Keep other socketkit servers from binding a path in the same folder, on this machine, while the block runs.

    A socket that is bound and does not listen yet looks like one that a dead server has left, and between the look and the removal
    another server may bind the path. So one server at a time looks, removes, binds and listens. The lock is on the folder itself, by
    flock(2): that leaves no file behind, is gone with its process, and needs only the right to read the folder. Without that right, on
    a file system without such locks, or if some program keeps the lock for `PATIENCE` seconds, the block runs without it.
    """
    with contextlib.ExitStack() as opened:
        with contextlib.suppress(OSError):
            folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)  # noqa: PTH120 - the rest of this module uses os
            opened.callback(os.close, folder)
            _lock(folder)
        yield


def _lock(descriptor: int) -> None:
    """Wait for the lock on an open file, for `PATIENCE` seconds at most. Raises: OSError if the file system has no such locks."""
    import fcntl  # noqa: PLC0415 - only systems with Unix sockets have it

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return


def _set_mode(path: str, mode: int, found: os.stat_result) -> None:
    """Set the permissions of the socket at the path, and never those of what may have taken its place. Source: open(2), O_PATH."""
    if not hasattr(os, "O_PATH"):
        os.chmod(path, mode, follow_symlinks=os.chmod not in os.supports_follow_symlinks)  # noqa: PTH101 - the rest of this module uses os
        return
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        if not os.path.samestat(os.fstat(descriptor), found):
            raise OSError(errno.EADDRINUSE, "another program has replaced the socket at the path")
        os.chmod(f"/proc/self/fd/{descriptor}", mode)  # noqa: PTH101 - fchmod(2) refuses such a descriptor
    finally:
        os.close(descriptor)


def _unlinker(path: str, bound: list[os.stat_result]) -> Callable[[], None]:
    """Return a function that removes the socket bound at the path, or the one there now if another process bound it."""
    absolute, owner = os.path.abspath(path), os.getpid()  # noqa: PTH100 - a handler may change the working directory
    try:
        status = bound[0] if bound else os.lstat(absolute)
    except OSError:  # an abstract name, or the path was removed
        return lambda: None

    def remove() -> None:
        try:
            _unlink(absolute, status, owner)
        except OSError as error:  # most likely the process has become another user since it bound the path
            log.warning(
                "%s stays, because it cannot be removed (%s); the next server of the user that made it replaces it", path, error.strerror
            )

    return remove


def _remove_stale(url: str, path: str, kind: int) -> None:
    """Remove `path` if it is this user's socket and no process listens on it. Raises: ListenError if it is not a socket."""
    try:
        status = os.lstat(path)
    except OSError:
        return  # nothing there, or no permission to look: bind will report which
    if not stat.S_ISSOCK(status.st_mode):
        raise ListenError(errno.EADDRINUSE, url, "the path exists and is not a socket", "remove it, or listen on another path")
    with socket.socket(_AF_UNIX, kind) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            if status.st_uid == os.geteuid():
                with contextlib.suppress(OSError):  # bind will report it
                    _unlink(path, status, os.getpid())
        except OSError:
            pass  # a full queue, the other socket type, no permission: it may be in use, so let bind fail


def _unlink(path: str, status: os.stat_result, owner: int) -> None:
    """Remove the path if it still has the inode in `status` and this is the process `owner`. Raises: OSError if that is not allowed."""
    if os.getpid() != owner:
        return
    with contextlib.suppress(FileNotFoundError):
        now = os.lstat(path)
        if (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino):
            os.unlink(path)  # noqa: PTH108 - the rest of this module uses os
