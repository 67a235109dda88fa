"""Endurance figures in short form. In full, with the mark `soak`, the tests write them to the file behind the page."""

import pytest

from faults.figures import HOLD, MEASURES, TIMES, WHERE, CannotMeasureError, keep, long, measure, missed

SHORT = {
    "leaks": 500,
    "idle": 300,
    "kills": 10,
    "restarts": 3,
    "emfile": 6,
    "stops": 30,
    "slow": 40,
    "scans": 500,
    "storm": 100,
    "stampede": 40,
    "fuzz": 1000,
    "memory": 3,
    "calls": 2,
}
"""Sizes with which each measurement takes about a second."""

BRIEFLY = {
    "leaks": [subject for subject in WHERE["leaks"] if subject.endswith(("/tcp", "/udp"))],
    "idle": ["adaptive"],
    "kills": ["sync"],
    "restarts": ["adaptive"],
    "emfile": ["thread/tcp", "adaptive/tcp"],
    "stops": ["sync/tcp", "pool/tcp", "adaptive/tcp"],
    "slow": ["adaptive, messages", "adaptive, a thread each", "asyncio"],
    "scans": ["thread/tcp", "adaptive/tcp"],
    "storm": ["pool/tcp"],
    "stampede": ["pool/tcp", "adaptive/tcp", "prefork/tcp"],
    "fuzz": WHERE["fuzz"],
    "memory": ["sync", "adaptive"],
    "calls": ["adaptive"],
}

GENEROUS = 20
"""The factor by which limits on times are higher here, because other tests run at the same time. Counts are exact."""


def each(where):
    return [(name, subject) for name, subjects in where.items() for subject in subjects]


@pytest.mark.parametrize(("name", "subject"), each(BRIEFLY))
def test_a_figure_holds_in_short(name, subject):
    figure = measured(name, subject, SHORT[name] // (5 if subject.startswith("fork/") else 1), seconds=50)
    if name == "stops":
        assert figure["median ms"] <= HOLD[name]["p99 ms"]  # thirty values have no 99th percentile
        return
    for what in TIMES & figure.keys():
        figure[what] /= GENEROUS
    if name == "idle":  # fixed costs weigh more with few connections, and spare threads stay for ten seconds
        figure["bytes/connection"] /= 2
        figure["threads added"] -= 2
    assert missed(name, figure) == [], figure


def measured(*arguments, **options):
    try:
        return measure(*arguments, **options)
    except CannotMeasureError as error:
        pytest.skip(str(error))


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("name", "subject"), each(WHERE))
def test_a_figure_holds_in_long(name, subject):
    figure = measured(name, subject, long(name, subject))
    keep(name, subject, figure)
    assert missed(name, figure) == [], figure


def test_what_has_grown_is_missed():
    grown = {"bytes added": 2 << 20, "descriptors added": 0, "threads added": 1, "left behind": ["a thread"], "wrong": 0}
    assert missed("leaks", grown) == ["bytes added: 2097152, at most 1048576", "threads added: 1, at most 0", "left behind: 1, at most 0"]
    assert missed("restarts", {"not answered": 0, "dropped by the kernel": None}) == []


def test_every_figure_says_what_holds_and_is_measured_in_short_too():
    assert HOLD.keys() == WHERE.keys() == MEASURES.keys() == SHORT.keys() == BRIEFLY.keys()
    assert all(set(BRIEFLY[name]) <= set(WHERE[name]) for name in WHERE)
