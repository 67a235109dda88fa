"""The catalogue of faults: reads `catalogue.toml`, from which tests and pages are generated."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import attrs

from faults.lab import DISPATCHERS, LAYERED, TRANSPORTS

TABLE = Path(__file__).with_name("catalogue.toml")

EVERY_DISPATCHER, EVERY_TRANSPORT = tuple(DISPATCHERS), tuple(TRANSPORTS)
GROUPS = {
    "every": EVERY_DISPATCHER,
    "streams": ("tcp", "unix"),
    "datagrams": ("udp", "unix-dgram"),
    "processes": ("fork", "prefork"),
    "threads": tuple(each for each in EVERY_DISPATCHER if each not in {"fork", "prefork"}),
}

NEEDS = {
    "methods": "methods that a test overrides stay in its own interpreter",
    "notes": "what a test's handlers and observers record stays in its own interpreter",
    "accept": "errors that a test injects into `accept` stay in its own interpreter",
}


def _some(every: tuple[str, ...], others: tuple[str, ...] = ()) -> object:
    def convert(names: list[str]) -> tuple[str, ...]:
        found = [each for name in names for each in (every if name == "every" else GROUPS.get(name, (name,)))]
        assert set(found) <= {*every, *others}, names
        return tuple(each for each in (*every, *others) if each in found)

    return convert


@attrs.frozen(kw_only=True)
class Row:
    """One fault. An empty attribute does not apply."""

    id: str
    fault: str
    """What goes wrong."""
    expected: str = ""
    """What a socketkit server does."""
    dispatchers: tuple[str, ...] = attrs.field(default=("every",), converter=_some(EVERY_DISPATCHER))
    transports: tuple[str, ...] = attrs.field(default=("every",), converter=_some(EVERY_TRANSPORT, LAYERED))
    _unless: dict[str, str] = attrs.field(factory=dict)
    needs: str = attrs.field(default="", validator=attrs.validators.in_(("", *NEEDS)))
    """What the scenario changes in the server. It stays in the scenario's own interpreter."""
    tests: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    """Other tests of the fault, by node id within tests/."""
    part: str = ""
    """The part that the fault is about, if socketkit does not have that part."""
    not_ours: str = ""
    """Why socketkit makes no promise."""
    stdlib: str = attrs.field(default="", validator=attrs.validators.in_(("", "passes", "fails", "no such feature")))
    stdlib_does: str = ""
    proof: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    """Pairs whose scenario also runs with the standard library's classes, and has to fail there."""
    shows: str = ""
    """A regular expression that matches the failure there."""
    mended: str = ""
    """The first Python whose standard library passes the scenario, such as 3.15."""

    @property
    def unless(self) -> dict[str, str]:
        """Pairs that the fault does not apply to (patterns such as ``fork/*``), and why."""
        return {**self._unless, **({"interpreters/*": NEEDS[self.needs]} if self.needs else {})}

    @property
    def family(self) -> str:
        return self.id[:2]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield the pairs of dispatcher and transport that the fault applies to."""
        for dispatcher in self.dispatchers:
            for transport in self.transports:
                if not matching(self.unless, dispatcher, transport):
                    yield dispatcher, transport

    def state(self, has_scenario: bool) -> str:
        """Return the status of the row."""
        if self.not_ours:
            return "not promised"
        if self.part:
            return "no such part"
        return "tested" if self.tests or has_scenario else "untested"


def matching(patterns: dict[str, str], dispatcher: str, transport: str) -> str:
    """Return the value of the first pattern that matches the pair, or ""."""
    return next((reason for pattern, reason in patterns.items() if fnmatch(f"{dispatcher}/{transport}", pattern)), "")


FAMILIES: dict[str, str] = {}
ROWS: dict[str, Row] = {}
for _family, _table in tomllib.loads(TABLE.read_text("utf-8")).items():
    FAMILIES[_family] = _table.pop("title")
    for _number, _row in _table.items():
        ROWS[_family + _number] = Row(id=_family + _number, **_row)
