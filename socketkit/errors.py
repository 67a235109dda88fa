"""Every error socketkit raises on its own account, split by who has to act.

The caller acts on a `ConfigError` and its kinds, a plugin's author on a `PluginError` or a `ClashError`, the person at the machine
on a `ListenError`. What the operating system says while requests are served stays a plain `OSError`.
Each class is also the builtin its callers already catch, carries its facts as fields, and survives pickling.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs


class SocketkitError(Exception):
    """The root of this module: catch it, never raise it."""


@attrs.frozen
class Fault:
    """One thing wrong with a composition: where it stands and what to do about it.

    `key` is a dotted path such as ``servers.echo.dispatcher.workers``, or "" where there is no file.
    """

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


@attrs.define
class ConfigError(SocketkitError, ValueError):
    """A composition that cannot be: all its faults at once, and nothing was bound."""

    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, message: str, key: str = "") -> ConfigError:
        """Return the error for a single fault."""
        return cls((Fault(key, message),))

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))


@attrs.define
class UnknownPartError(SocketkitError, LookupError):
    """Nothing installed offers a part of that name. `suspects` are sentences about plugins that might have, and were not usable."""

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
    """A plugin that cannot be used: it does not import, or its hooks are not the ones of `socketkit.hookspecs`."""

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
    """Parts that cannot work together, or a part this platform cannot carry."""

    part: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.part} {self.reason}; {self.remedy}"


@attrs.define
class HandlerError(SocketkitError, TypeError):
    """A handler that cannot be imported or cannot be called."""

    handler: str
    reason: str

    def __str__(self) -> str:
        return f"handler {self.handler!r} {self.reason}; give module:Class, or a callable taking (request, client_address, server)"


class ListenError(SocketkitError, OSError):
    """A transport that could not be opened. `errno` is the system's; `url` names the place; nothing stays bound."""

    def __init__(self, errno: int | None, url: str, reason: str, remedy: str) -> None:
        super().__init__(errno, url, reason, remedy)
        self.errno, self.url, self.reason, self.remedy = errno, url, reason, remedy

    def __str__(self) -> str:
        return f"cannot listen on {self.url}: {self.reason}; {self.remedy}"


class AlreadyServingError(SocketkitError, RuntimeError):
    """This server is being served already, by another thread or by this one further up the stack."""

    def __init__(self) -> None:
        super().__init__("this server is already serving; stop() it first, or compose a second one")


@attrs.define
class LineTooLongError(SocketkitError, ValueError):
    """A peer has sent more than so many bytes without the end of a line: the server's limit `line`."""

    limit: int

    def __str__(self) -> str:
        return f"line too long: it has more than {self.limit} bytes"


@attrs.define
class StalledError(SocketkitError, TimeoutError):
    """A peer that has taken nothing of what it is sent for so many seconds: the server's limit `write_stall`."""

    seconds: float

    def __str__(self) -> str:
        return f"the peer has taken nothing of what it is sent for {self.seconds:g} s"


@attrs.define
class BootError(SocketkitError, RuntimeError):
    """Worker processes that end before they take a request, one after the other."""

    attempts: int
    cause: str

    def __str__(self) -> str:
        return f"{self.attempts} workers in a row ended before they were ready, the last by {self.cause}; the log says what they met"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return ``, did you mean 'x'?`` for the nearest of `known`, or "" when none is near."""
    from difflib import get_close_matches  # noqa: PLC0415 - for those who misspell

    near = get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
