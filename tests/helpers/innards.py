"""What tests see of a server's inside: the only place that knows how to get there.

Use it for promises that cannot be seen from outside, such as that a connection is parked, and to wait for such a moment.
"""

from __future__ import annotations

from typing import Any

from socketkit._engine.steps import engine_of


def run(server: Any) -> Any:
    """Return the current run; None between two runs."""
    return engine_of(server).run


def intake(server: Any) -> Any:
    """Return the intake of the current run; None before it is open."""
    return run(server).intake


def parked(server: Any) -> list[Any]:
    """Return the parked connections."""
    return list(intake(server).lot.parked)


def sources(server: Any) -> list[Any]:
    """Return the sources of the intake, one for each listener."""
    return intake(server).accepting.sources


def ledger(server: Any) -> Any:
    """Return the server's ledger."""
    return engine_of(server).ledger


def active(server: Any) -> list[Any]:
    """Return the ledger's entries of the requests in progress."""
    return ledger(server).active()


def limits(server: Any) -> Any:
    """Return the limits as the dispatcher and the system have adjusted them."""
    engine = engine_of(server)
    return engine._limits_in_force(engine.live or engine.start_dispatcher())


def live(server: Any) -> Any:
    """Return the dispatcher's live part."""
    return engine_of(server).live.part


def listeners(server: Any) -> list[Any]:
    """Return the open listeners."""
    return engine_of(server).listeners


def phase(server: Any) -> Any:
    """Return the phase of the server."""
    engine = engine_of(server)
    current = engine.run  # read once: the run may end at any moment
    return (engine if current is None else current).phase
