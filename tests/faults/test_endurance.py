"""Figures of endurance, in short; in long, behind the mark `soak`, they are written to the file that the page shows."""

import json

import pytest

from faults.figures import HOLD, LONG, RESULTS, WHERE, measure, missed

SHORT = {"leaks": 500, "stops": 30, "scans": 500, "storm": 100, "stampede": 40}
"""Each takes a second or so."""

BRIEFLY = {
    "leaks": [pair for pair in WHERE["leaks"] if pair[1] in {"tcp", "udp"}],
    "stops": [("sync", "tcp"), ("pool", "tcp"), ("adaptive", "tcp")],
    "scans": [("thread", "tcp"), ("adaptive", "tcp")],
    "storm": [("pool", "tcp")],
    "stampede": [("pool", "tcp"), ("adaptive", "tcp"), ("prefork", "tcp")],
}


def each(where):
    return [(name, *pair) for name, pairs in where.items() for pair in pairs]


@pytest.mark.parametrize(("name", "dispatcher", "transport"), each(BRIEFLY))
def test_a_figure_holds_in_short(name, dispatcher, transport):
    figure = measure(name, dispatcher, transport, SHORT[name] // (5 if dispatcher == "fork" else 1), seconds=50)
    if name == "stops":
        assert figure["median ms"] <= HOLD[name]["99th ms"]  # thirty have no 99th
    else:
        assert missed(name, figure) == [], figure


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("name", "dispatcher", "transport"), each(WHERE))
def test_a_figure_holds_in_long(name, dispatcher, transport):
    figure = measure(name, dispatcher, transport, LONG[name] // (10 if dispatcher == "fork" else 1))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results.setdefault(name, {})[f"{dispatcher}/{transport}"] = figure
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    assert missed(name, figure) == [], figure


def test_what_has_grown_is_missed():
    grown = {"bytes more": 2 << 20, "descriptors more": 0, "threads more": 1, "wrong": 0}
    assert missed("leaks", grown) == ["bytes more: 2097152, at most 1048576", "threads more: 1, at most 0"]
