"""Code shared by all socket transports: opening sockets with clear errors, and the two live listeners."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import attrs

from socketkit._system import activation
from socketkit._system.sockets import DONT_WAIT
from socketkit.errors import ListenError
from socketkit.seams import Address
from socketkit.seams.grammar import quote
from socketkit.seams.replies import ReplySocket
from socketkit.seams.stats import Queue

Socket: TypeAlias = socket.socket  # inside the listeners, `socket` is an attribute
_INHERITS_NONBLOCKING = sys.platform != "linux"  # with BSD's accept(2), connections inherit O_NONBLOCK

LARGEST = (1 << 31) - 1
"""The largest number that a socket option, or the length of a queue, can have."""

_SO_MEMINFO = 55  # Python has no constant for it; source: asm-generic/socket.h
_DROPS = slice(32, 36)  # the ninth of its __u32 numbers

_TCP_INFO = slice(24, 28), slice(28, 32)
"""`tcpi_unacked` and `tcpi_sacked`: of a listener, the length and the limit of its accept queue. Source: tcp_get_info in net/ipv4/tcp.c."""

_REMEDIES = {
    errno.EADDRINUSE: "stop the program that uses it, or listen elsewhere",
    errno.EADDRNOTAVAIL: "use an address of this machine, or an empty host for all of them",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "use a port from 1024 on or a path you may write, or run with more privileges"),
    errno.ENOENT: "create the directory first",
    errno.ENOTDIR: "give a path inside a directory",
    errno.ENOSPC: "free space on that file system",
    errno.EAFNOSUPPORT: "use an address of a family that this system supports",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


@contextlib.contextmanager
def opening(url: str, sock: socket.socket | None = None) -> Iterator[None]:
    """Turn an OSError in the block into a ListenError with a remedy; on any error, close the socket."""
    try:
        yield
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, ListenError) or not isinstance(error, OSError):
            raise
        reason, remedy = error.strerror or str(error), _REMEDIES.get(error.errno or 0, "check the address")
        if isinstance(error, socket.gaierror):
            reason, remedy = f"the host name does not resolve ({error.strerror})", "check its spelling, or use an address"
        raise ListenError(error.errno, url, reason, remedy) from error


def open_socket(url: str, family: int, kind: int, prepare: Callable[[socket.socket], object]) -> socket.socket:
    """Return a new socket that `prepare(socket)` has bound. On any error the socket is closed.

    Raises: ListenError if the system refuses.
    """
    with opening(url):
        sock = socket.socket(family, kind)
    with opening(url, sock):
        prepare(sock)
    return sock


def inherit_or_open(
    url: str, kind: int, bind: Callable[[], socket.socket], activate: Callable[[socket.socket], object] = lambda _sock: None
) -> socket.socket:
    """Return a socket that listens at this URL: an inherited one if there is one, else a new one from `bind`.

    activate: makes the socket, inherited or new, listen as the transport requires. The next generation inherits the socket.
    Raises: ListenError.
    """
    sock = inherited(url, kind, lambda: activation.claim(url))
    if sock is None:
        sock = bind()
        activation.listens(url, sock)
    with opening(url, sock):
        activate(sock)
    return sock


def inherited(url: str, kind: int, claim: Callable[[], socket.socket | None]) -> socket.socket | None:
    """Return the inherited socket that `claim` finds, or None. It must have this kind and, if a stream socket, be listening.

    Raises: ListenError if the socket does not fit; it stays open and unchanged.
    """
    try:
        sock = claim()
    except OSError as error:
        reason = {errno.EBADF: "the descriptor is not open", errno.ENOTSOCK: "the descriptor is not a socket"}.get(error.errno or 0)
        raise ListenError(
            error.errno, url, reason or error.strerror or str(error), "pass a listening socket, or a bound one for datagrams"
        ) from error
    if sock is None or (misfit := _misfit(sock, kind)) is None:
        return sock
    sock.detach()
    raise ListenError(errno.EINVAL, url, *misfit)


_KINDS: dict[int, str] = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "datagram"}


def _misfit(sock: socket.socket, kind: int) -> tuple[str, str] | None:
    """Return what is wrong with an inherited socket and the remedy; None if nothing is."""
    if sock.type != kind:
        found, wanted = (_KINDS.get(each, f"type-{int(each)}") for each in (sock.type, kind))
        return f"the inherited socket is a {found} socket, not a {wanted} socket", f"pass a {wanted} socket, or set kind={found}"
    if kind == socket.SOCK_STREAM and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "the inherited socket does not listen", "call listen() before passing it on; with systemd, leave Accept=no"
    return None


@attrs.define(eq=False)
class Owner:
    """What all listeners do with the socket that they own."""

    socket: Socket
    url: str
    on_close: Callable[[], object] = attrs.field(default=lambda: None, kw_only=True)

    @property
    def address(self) -> Address:
        return self.socket.getsockname()

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        """Close the socket. Call `on_close` unless another process bound it or still listens on it. May be called twice."""
        if self.socket.fileno() != -1 and not activation.leaves_its_path(self.socket):
            self.on_close()
        self.socket.close()


@attrs.define(eq=False)
class StreamListener(Owner):
    """Live stream transport: `accept` returns (socket, address). Owns the listening socket."""

    _kind: tuple[int, int, int] = attrs.field(init=False, repr=False)
    """Family, type and protocol of accepted sockets."""

    def __attrs_post_init__(self) -> None:
        self.socket.setblocking(False)
        self._kind = int(self.socket.family), int(self.socket.type), self.socket.proto

    def copier(self) -> Callable[[Socket], StreamListener]:
        """As `socketkit.seams.Copies.copier`."""
        return partial(type(self), url=self.url)

    @property
    def queue(self) -> Queue | None:
        """The connections that wait to be accepted; None once closed, or if the system does not say."""
        if sys.platform != "linux":
            return None
        try:
            facts = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO[-1].stop)
        except OSError:  # closed, or no TCP
            return None
        waiting, limit = (int.from_bytes(facts[place], sys.byteorder) for place in _TCP_INFO)
        return Queue(waiting, limit)

    def accept(self) -> tuple[Socket, Address]:
        """Return the next connection and its peer. The connection is blocking, without a timeout, whatever the process's defaults."""
        fileno, address = self.socket._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - `accept` makes enums on every call
        connection = socket.socket(*self._kind, fileno=fileno)
        if _INHERITS_NONBLOCKING or socket.getdefaulttimeout() is not None:
            connection.setblocking(True)
        return connection, address


@attrs.define(eq=False)
class DatagramListener(Owner):
    """Live datagram transport: `accept` returns ((data, socket), address). Owns the socket, which stays blocking for senders."""

    max_packet_size: int
    _dropped_before: int | None = attrs.field(init=False, repr=False)
    _receiving: Socket = attrs.field(init=False, repr=False)
    """The socket, or Python's own inside it if gevent has patched the program: the outer one waits in spite of MSG_DONTWAIT."""

    def __attrs_post_init__(self) -> None:
        self.socket.setblocking(True)
        self._receiving = getattr(self.socket, "_sock", self.socket)
        self._dropped_before = _drops(self.socket)

    def copier(self) -> Callable[[Socket], DatagramListener]:
        """As `socketkit.seams.Copies.copier`."""
        return partial(type(self), url=self.url, max_packet_size=self.max_packet_size)

    @property
    def dropped(self) -> int | None:
        """Number of datagrams the system dropped since the listener opened; None once closed or if the system does not say."""
        now = _drops(self.socket)
        return None if now is None or self._dropped_before is None else (now - self._dropped_before) % (1 << 32)

    def accept(self) -> tuple[tuple[bytes, Socket | ReplySocket], Address]:
        """Return the next datagram with the socket to answer on, and its sender.

        A datagram longer than `max_packet_size` is cut to `max_packet_size` + 1 bytes, which is how the caller detects it.
        """
        data, address = self._receiving.recvfrom(self.max_packet_size + 1, DONT_WAIT)
        return (data, self.socket), address


def _drops(sock: Socket) -> int | None:
    """Return the system's count of datagrams dropped on a socket; None if the system does not say.

    The count is SK_MEMINFO_DROPS among the numbers of SO_MEMINFO. Source: linux/sock_diag.h, explained in sock_diag(7).
    """
    if sys.platform != "linux":
        return None
    try:
        numbers = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _DROPS.stop)
    except OSError:  # closed, or a kernel before 4.12
        return None
    return int.from_bytes(numbers[_DROPS], sys.byteorder) if len(numbers) == _DROPS.stop else None


def unix_url(scheme: str, path: str) -> str:
    """Return the URL of a Unix socket: a path, or an abstract name after ``@``."""
    return f"{scheme}:{quote(path)}" if path.startswith("@") else f"{scheme}://{quote(path)}"
