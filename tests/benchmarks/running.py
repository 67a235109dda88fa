"""Rounds: each side of a row runs once in each round. Every second round reverses the order, so that noise affects all sides alike."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from .clients import ClientError
from .figures import Reading, collect
from .processes import DidNotStartError
from .rows import Row


def measure(row: Row, rounds: int, seconds: float, say: Callable[[str], object]) -> dict[str, Any]:
    """Return the row's facts and figures, in the form of the JSON file. say: receives each result as a line.

    A side that does not start or answer is skipped in later rounds, with the reason. seconds: how long a client's load lasts.
    """
    readings: dict[str, list[Reading]] = {side: [] for side in row.sides}
    skipped: dict[str, str] = {}
    for number in range(rounds):
        for side in list(row.sides) if number % 2 == 0 else list(reversed(row.sides)):
            if side in skipped:
                continue
            try:
                reading = row.measure(row.sides[side](), seconds)
            except (DidNotStartError, ClientError, OSError, subprocess.SubprocessError) as error:
                skipped[side] = f"{error}"
                say(f"  {side}: skipped: {error}")
                continue
            readings[side].append(reading)
            say(f"  {number + 1}/{rounds} {side}: " + ", ".join(f"{metric} {value:,.4g}" for metric, value in reading.items()))
    sides = {side: collect(found) for side, found in readings.items() if found and side not in skipped}
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    return {**row.facts(), "when": when, "rounds": rounds, "seconds": seconds, "sides": sides, "skipped": skipped}
