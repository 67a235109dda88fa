"""What this platform can carry, and which parts can work together: everything that is refused is refused here, by name."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from socketkit.errors import ConfigError, IncompatibleError

_SOCKETS = sys.platform not in {"emscripten", "wasi"}

FEATURES: dict[str, bool] = {
    "sockets": _SOCKETS,
    "threads": _SOCKETS,
    "fork": _SOCKETS and hasattr(os, "fork"),
    "Unix sockets": _SOCKETS and hasattr(socket, "AF_UNIX"),
}
"""What a recipe may name in `requires`, and whether this platform has it."""


def check(transports: Sequence[Any], dispatcher: Any, lifecycle: Any) -> None:
    """Refuse a composition that cannot work. Nothing is bound by then.

    Recipes declare: `requires`, features of the platform (all parts); `kinds`, the kinds of request it runs (dispatchers; default
    both). Raises: ConfigError, IncompatibleError.
    """
    if not transports:
        raise ConfigError.of("a server needs at least one transport; give one, such as tcp://127.0.0.1:9999")
    for part in (*transports, dispatcher, lifecycle):
        for feature in sorted(getattr(part, "requires", ())):
            if not FEATURES.get(feature, False):
                name = type(part).__name__
                raise IncompatibleError(name, f"needs {feature}, which this platform ({sys.platform}) lacks", "choose another part")
    kinds = getattr(dispatcher, "kinds", ("stream", "datagram"))
    for transport in transports:
        if transport.kind not in kinds:
            raise IncompatibleError(
                f"{type(dispatcher).__name__}",
                f"runs {' and '.join(sorted(kinds))} requests, and {transport.url} brings {transport.kind}s",
                "choose another dispatcher or transport",
            )
