"""Layers that are renewed while their server serves: see `socketkit.seams.Renews`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from socketkit._system.logs import Log
from socketkit.seams import Renews

log = Log("socketkit.renewal")


def renew(layer: Renews) -> None:
    """Renew the layer once. An error is logged: its caller, the loop or the timer, has other work to do."""
    try:
        layer.renew()
    except Exception:
        log.exception("%r could not be renewed, and goes on with what it has", layer)


def keep_renewing(layer: Renews, later: Callable[[float, Callable[[], object]], None]) -> None:
    """Renew the layer now, then every `renew_every` seconds by way of `later`."""
    renew(layer)
    if layer.renew_every is not None:
        later(layer.renew_every, partial(keep_renewing, layer, later))
