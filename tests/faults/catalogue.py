"""The catalogue of faults: one table, `catalogue.toml`, from which tests and pages are made."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import attrs

from faults.lab import DISPATCHERS, TRANSPORTS

TABLE = Path(__file__).with_name("catalogue.toml")

EVERY_DISPATCHER, EVERY_TRANSPORT = tuple(DISPATCHERS), tuple(TRANSPORTS)
GROUPS = {
    "every": EVERY_DISPATCHER,
    "streams": ("tcp", "unix"),
    "datagrams": ("udp", "unix-dgram"),
    "processes": ("fork", "prefork"),
    "threads": tuple(each for each in EVERY_DISPATCHER if each not in {"fork", "prefork"}),
}


def _some(everything: tuple[str, ...]) -> object:
    def convert(names: list[str]) -> tuple[str, ...]:
        found = [each for name in names for each in (everything if name == "every" else GROUPS.get(name, (name,)))]
        assert set(found) <= set(everything), names
        return tuple(each for each in everything if each in found)

    return convert


@attrs.frozen(kw_only=True)
class Row:
    """One fault. What is "" or empty does not apply."""

    id: str
    fault: str
    """What goes wrong."""
    expected: str = ""
    """What a server of ours does."""
    dispatchers: tuple[str, ...] = attrs.field(default=("every",), converter=_some(EVERY_DISPATCHER))
    transports: tuple[str, ...] = attrs.field(default=("every",), converter=_some(EVERY_TRANSPORT))
    unless: dict[str, str] = attrs.field(factory=dict)
    """Pairs it does not apply to (patterns such as ``fork/*``), and why."""
    tests: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    """Other tests that hold it, by node id within tests/."""
    part: str = ""
    """The part it is about, if there is no such part: nobody can meet it then."""
    not_ours: str = ""
    """Why it is nobody's fault that this does not hold."""
    stdlib: str = attrs.field(default="", validator=attrs.validators.in_(("", "passes", "fails", "has no such thing")))
    stdlib_does: str = ""
    proof: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    """Pairs under which the scenario is run with the standard library's classes, where it has to fail."""
    shows: str = ""
    """What its failure there looks like: a regular expression."""

    @property
    def family(self) -> str:
        return self.id[:2]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield the pairs of dispatcher and transport that it applies to."""
        for dispatcher in self.dispatchers:
            for transport in self.transports:
                if not matching(self.unless, dispatcher, transport):
                    yield dispatcher, transport

    def state(self, has_scenario: bool) -> str:
        """Return in a word how the row stands."""
        if self.not_ours:
            return "not ours"
        if self.part:
            return "no such part"
        return "held" if self.tests or has_scenario else "nothing"


def matching(patterns: dict[str, str], dispatcher: str, transport: str) -> str:
    """Return what the first pattern that fits the pair is mapped to, or ""."""
    return next((reason for pattern, reason in patterns.items() if fnmatch(f"{dispatcher}/{transport}", pattern)), "")


FAMILIES: dict[str, str] = {}
ROWS: dict[str, Row] = {}
for _family, _table in tomllib.loads(TABLE.read_text("utf-8")).items():
    FAMILIES[_family] = _table.pop("title")
    for _number, _row in _table.items():
        ROWS[_family + _number] = Row(id=_family + _number, **_row)
