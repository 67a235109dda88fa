"""The errors that socketkit itself raises.

The caller fixes a `ConfigError`, `UnknownPartError`, `IncompatibleError` or `HandlerError`, a plugin's author a `PluginError` or
`ClashError`, and the operator of the machine a `ListenError` or `PrivilegeError`.
Errors of the operating system while requests are served stay plain `OSError`.
Each class is also a builtin error that callers already catch, carries its facts as fields, and can be pickled.
"""

from __future__ import annotations

TYPE_CHECKING = False  # instead of importing it from typing, which every classic server would wait for, as for attrs
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, ClassVar


class SocketkitError(Exception):
    """Base class of all socketkit errors. Catch it; never raise it directly."""

    if TYPE_CHECKING:
        __match_args__: ClassVar[tuple[str, ...]]
    __match_args__ = ()  # the fields, which are also the arguments

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__qualname__}({fields})" if fields else super().__repr__()


class Fault:
    """One fault in a composition: its place, and what to do about it. It cannot be changed.

    `key` is a dotted path such as ``servers.echo.dispatcher.workers``; "" if there is no configuration file.
    """

    __slots__ = __match_args__ = ("key", "message")

    key: str
    message: str

    def __init__(self, key: str, message: str) -> None:
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "message", message)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name!r} of a Fault cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name!r} of a Fault cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return (self.key, self.message) == (other.key, other.message) if isinstance(other, Fault) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.key, self.message))

    def __reduce__(self) -> Any:
        return Fault, (self.key, self.message)

    def __repr__(self) -> str:
        return f"Fault(key={self.key!r}, message={self.message!r})"

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class ConfigError(SocketkitError, ValueError):
    """An invalid composition. Lists all its faults; nothing was bound."""

    __match_args__ = ("faults",)

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__(faults)
        self.faults = faults

    @classmethod
    def of(cls, message: str, key: str = "") -> ConfigError:
        """Return an error with a single fault."""
        return cls((Fault(key, message),))

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))


class UnknownPartError(SocketkitError, LookupError):
    """No installed part has that name. `suspects` are sentences about unusable plugins that might offer it."""

    __match_args__ = ("kind", "name", "known", "suspects")

    def __init__(self, kind: str, name: str, known: tuple[str, ...], suspects: tuple[str, ...] = ()) -> None:
        super().__init__(kind, name, known, suspects)
        self.kind, self.name, self.known, self.suspects = kind, name, known, suspects

    def __str__(self) -> str:
        installed = ", ".join(self.known) or "none"
        unknown = f"no {self.kind} named {self.name!r}{did_you_mean(self.name, self.known)}; installed: {installed}"
        return "; perhaps because ".join((unknown, *self.suspects))


class ClashError(SocketkitError, ValueError):
    """Two plugins offer a part of the same name."""

    __match_args__ = ("kind", "name", "first", "second")

    def __init__(self, kind: str, name: str, first: str, second: str) -> None:
        super().__init__(kind, name, first, second)
        self.kind, self.name, self.first, self.second = kind, name, first, second

    def __str__(self) -> str:
        return (
            f"two plugins offer the {self.kind} {self.name!r}: {self.first} and {self.second}; "
            f"uninstall one, or block one with SOCKETKIT_DISABLED_PLUGINS"
        )


class PluginError(SocketkitError, ImportError):
    """A plugin cannot be used: it cannot be imported, or its hooks do not match `socketkit.hookspecs`."""

    __match_args__ = ("plugin", "distribution", "reason")

    def __init__(self, plugin: str, distribution: str, reason: str) -> None:
        super().__init__(plugin, distribution, reason)
        self.plugin, self.distribution, self.reason = plugin, distribution, reason

    def __str__(self) -> str:
        return (
            f"plugin {self.plugin!r} of {self.distribution} cannot be used: {self.reason}; "
            f"repair or uninstall it, or block it with SOCKETKIT_DISABLED_PLUGINS={self.plugin}"
        )


class IncompatibleError(SocketkitError, TypeError):
    """Parts do not work together, or this platform does not support a part."""

    __match_args__ = ("part", "reason", "remedy")

    def __init__(self, part: str, reason: str, remedy: str) -> None:
        super().__init__(part, reason, remedy)
        self.part, self.reason, self.remedy = part, reason, remedy

    def __str__(self) -> str:
        return f"{self.part} {self.reason}; {self.remedy}"


class HandlerError(SocketkitError, TypeError):
    """A handler cannot be imported or called."""

    __match_args__ = ("handler", "reason")

    def __init__(self, handler: str, reason: str) -> None:
        super().__init__(handler, reason)
        self.handler, self.reason = handler, reason

    def __str__(self) -> str:
        return f"{self.handler!r} {self.reason}; give module:Class, or a callable taking (request, client_address, server)"


class ListenError(SocketkitError, OSError):
    """A transport cannot be opened. `errno` is the system's, `url` the place to listen on. Nothing stays bound."""

    def __init__(self, errno: int | None, url: str, reason: str, remedy: str) -> None:
        super().__init__(errno, url, reason, remedy)
        self.errno, self.url, self.reason, self.remedy = errno, url, reason, remedy

    def __reduce__(self) -> Any:
        return type(self), (self.errno, self.url, self.reason, self.remedy)  # OSError keeps only two of four arguments

    def __str__(self) -> str:
        return f"cannot listen on {self.url}: {self.reason}; {self.remedy}"


class AlreadyServingError(SocketkitError, RuntimeError):
    """The server is already serving, in another thread or further up this thread's stack."""

    def __init__(self) -> None:
        super().__init__("this server is already serving; call stop() first, or compose a second server")

    def __reduce__(self) -> Any:
        return type(self), ()


class LineTooLongError(SocketkitError, ValueError):
    """A client sent a line of more than `limit` bytes: the server's limit `line`."""

    __match_args__ = ("limit",)

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"line too long: it has more than {self.limit} bytes"


class StalledError(SocketkitError, TimeoutError):
    """A client read nothing for `seconds` seconds although data was waiting for it: the server's limit `write_stall`."""

    __match_args__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"the client has read nothing for {self.seconds:g} s although data is waiting for it"


class UpgradeError(SocketkitError, ConnectionError):
    """A connection could not be upgraded to TLS, and is over. `__cause__` is the error that ended it."""

    __match_args__ = ("reason",)

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the connection could not be upgraded: {self.reason}"


class BootError(SocketkitError, RuntimeError):
    """Several worker processes in a row ended before they were ready."""

    __match_args__ = ("attempts", "cause")

    def __init__(self, attempts: int, cause: str) -> None:
        super().__init__(attempts, cause)
        self.attempts, self.cause = attempts, cause

    def __str__(self) -> str:
        if self.attempts == 1:
            return f"a worker ended before it was ready: {self.cause}; the log has its errors"
        return f"{self.attempts} workers in a row ended before they were ready, the last: {self.cause}; the log has their errors"


class PrivilegeError(SocketkitError, RuntimeError):
    """The process cannot run as the user that its lifecycle names. Nothing was served, and nothing stays bound."""

    __match_args__ = ("user", "reason", "remedy")

    def __init__(self, user: str, reason: str, remedy: str) -> None:
        super().__init__(user, reason, remedy)
        self.user, self.reason, self.remedy = user, reason, remedy

    def __str__(self) -> str:
        return f"cannot run as user {self.user!r}: {self.reason}; {self.remedy}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return ``, did you mean 'x'?`` for the name in `known` that is closest to `name`; "" if none is close."""
    from difflib import get_close_matches  # noqa: PLC0415 - needed only for a misspelled name

    near = get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
