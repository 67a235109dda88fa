"""The register of scenarios: which functions test which rows of the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from faults.lab import Lab

SCENARIOS: dict[str, list[Callable[[Lab], None]]] = {}
"""Scenarios by row."""


def holds(*rows: str) -> Callable[[Any], Any]:
    """Register a scenario for these rows."""

    def register(scenario: Any) -> Any:
        for row in rows:
            SCENARIOS.setdefault(row, []).append(scenario)
        return scenario

    return register
