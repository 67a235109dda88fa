"""The errors that socketkit itself raises.

The caller fixes a `ConfigError`, `UnknownPartError`, `IncompatibleError` or `HandlerError`, a plugin's author a `PluginError` or
`ClashError`, and the operator of the machine a `ListenError` or `PrivilegeError`.
Errors of the operating system while requests are served stay plain `OSError`.
Each class is also a builtin error that callers already catch, carries its facts as fields, and can be pickled.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs


class SocketkitError(Exception):
    """Base class of all socketkit errors. Catch it; never raise it directly."""


@attrs.frozen
class Fault:
    """One fault in a composition: its place, and what to do about it.

    `key` is a dotted path such as ``servers.echo.dispatcher.workers``; "" if there is no configuration file.
    """

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


@attrs.define
class ConfigError(SocketkitError, ValueError):
    """An invalid composition. Lists all its faults; nothing was bound."""

    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, message: str, key: str = "") -> ConfigError:
        """Return an error with a single fault."""
        return cls((Fault(key, message),))

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))


@attrs.define
class UnknownPartError(SocketkitError, LookupError):
    """No installed part has that name. `suspects` are sentences about unusable plugins that might offer it."""

    kind: str
    name: str
    known: tuple[str, ...]
    suspects: tuple[str, ...] = ()

    def __str__(self) -> str:
        installed = ", ".join(self.known) or "none"
        unknown = f"no {self.kind} named {self.name!r}{did_you_mean(self.name, self.known)}; installed: {installed}"
        return "; perhaps because ".join((unknown, *self.suspects))


@attrs.define
class ClashError(SocketkitError, ValueError):
    """Two plugins offer a part of the same name."""

    kind: str
    name: str
    first: str
    second: str

    def __str__(self) -> str:
        return (
            f"two plugins offer the {self.kind} {self.name!r}: {self.first} and {self.second}; "
            f"uninstall one, or block one with SOCKETKIT_DISABLED_PLUGINS"
        )


@attrs.define
class PluginError(SocketkitError, ImportError):
    """A plugin cannot be used: it cannot be imported, or its hooks do not match `socketkit.hookspecs`."""

    plugin: str
    distribution: str
    reason: str

    def __str__(self) -> str:
        return (
            f"plugin {self.plugin!r} of {self.distribution} cannot be used: {self.reason}; "
            f"repair or uninstall it, or block it with SOCKETKIT_DISABLED_PLUGINS={self.plugin}"
        )


@attrs.define
class IncompatibleError(SocketkitError, TypeError):
    """Parts do not work together, or this platform does not support a part."""

    part: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.part} {self.reason}; {self.remedy}"


@attrs.define
class HandlerError(SocketkitError, TypeError):
    """A handler cannot be imported or called."""

    handler: str
    reason: str

    def __str__(self) -> str:
        return f"handler {self.handler!r} {self.reason}; give module:Class, or a callable taking (request, client_address, server)"


class ListenError(SocketkitError, OSError):
    """A transport cannot be opened. `errno` is the system's, `url` the place to listen on. Nothing stays bound."""

    def __init__(self, errno: int | None, url: str, reason: str, remedy: str) -> None:
        super().__init__(errno, url, reason, remedy)
        self.errno, self.url, self.reason, self.remedy = errno, url, reason, remedy

    def __str__(self) -> str:
        return f"cannot listen on {self.url}: {self.reason}; {self.remedy}"


class AlreadyServingError(SocketkitError, RuntimeError):
    """The server is already serving, in another thread or further up this thread's stack."""

    def __init__(self) -> None:
        super().__init__("this server is already serving; call stop() first, or compose a second server")


@attrs.define
class LineTooLongError(SocketkitError, ValueError):
    """A client sent a line of more than `limit` bytes: the server's limit `line`."""

    limit: int

    def __str__(self) -> str:
        return f"line too long: it has more than {self.limit} bytes"


@attrs.define
class StalledError(SocketkitError, TimeoutError):
    """A client read nothing for `seconds` seconds although data was waiting for it: the server's limit `write_stall`."""

    seconds: float

    def __str__(self) -> str:
        return f"the client has read nothing for {self.seconds:g} s although data is waiting for it"


@attrs.define
class UpgradeError(SocketkitError, ConnectionError):
    """A connection could not be upgraded to TLS, and is over. `__cause__` is the error that ended it."""

    reason: str

    def __str__(self) -> str:
        return f"the connection could not be upgraded: {self.reason}"


@attrs.define
class BootError(SocketkitError, RuntimeError):
    """Several worker processes in a row ended before they were ready."""

    attempts: int
    cause: str

    def __str__(self) -> str:
        if self.attempts == 1:
            return f"a worker ended before it was ready: {self.cause}; the log has its errors"
        return f"{self.attempts} workers in a row ended before they were ready, the last: {self.cause}; the log has their errors"


@attrs.define
class PrivilegeError(SocketkitError, RuntimeError):
    """The process cannot run as the user that its lifecycle names. Nothing was served, and nothing stays bound."""

    user: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"cannot run as user {self.user!r}: {self.reason}; {self.remedy}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return ``, did you mean 'x'?`` for the name in `known` that is closest to `name`; "" if none is close."""
    from difflib import get_close_matches  # noqa: PLC0415 - needed only for a misspelled name

    near = get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
