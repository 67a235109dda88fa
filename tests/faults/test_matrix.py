"""Every row of the catalogue that has a scenario, under every dispatcher and transport that it applies to.

The scenarios of one pair run in one separate process; see `matrix`. A scenario with a proof also runs with the standard library's classes,
and has to fail there, except where a newer Python has mended it: this proves that the scenario detects the fault.
"""

import contextlib
import json
import re
import sys
from itertools import product

import pytest

from faults.catalogue import ROWS
from faults.lab import DISPATCHERS, LAYERED, TRANSPORTS
from faults.matrix import failures
from faults.scenarios import SCENARIOS
from helpers.support import TESTS
from socketkit.testing.programs import run, with_path

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.leaves("children", "descriptors", "threads", reason="the process of a pair runs until its last row has been tested"),
]


def tried():
    """Return a parameter for each row and pair, in the order in which they run. Python has other interpreters from 3.14 on."""
    here = [each for each in DISPATCHERS if each != "interpreters" or sys.version_info >= (3, 14)]
    return [
        pytest.param("socketkit", *pair, row.id, id=f"{row.id}-{'-'.join(pair)}")
        for pair in product(here, (*TRANSPORTS, *LAYERED))
        for row in ROWS.values()
        if row.id in SCENARIOS and pair in row.pairs()
    ]


def proofs():
    found = [(pair, row) for row in ROWS.values() for pair in row.proof]
    return [
        pytest.param("socketserver", *pair.split("/"), row.id, id=f"{row.id}-{pair.replace('/', '-')}")
        for pair, row in sorted(found, key=lambda each: each[0])
    ]


class Matrix:
    """The selected scenarios, and the process that runs those of one pair. They run in the order of the tests."""

    def __init__(self, selected):
        self._rows = {}
        for *pair, row in selected:
            self._rows.setdefault(tuple(pair), []).append(row)
        self._pair, self._left = None, []
        self._running = contextlib.ExitStack()

    def failure(self, *pair, row):
        """Return the failure of one scenario, or None if it passed. Waits without a limit."""
        if pair != self._pair or row not in self._left:
            self.close()
            rows = self._rows[pair]
            self._pair, self._left = pair, rows[rows.index(row) :]  # another worker of xdist runs those before
            self._failures = self._running.enter_context(contextlib.closing(failures(*pair, list(self._left))))
        while True:
            done, failure = self._left.pop(0), next(self._failures)
            if done == row:
                return failure

    def close(self):
        self._running.close()


@pytest.fixture(scope="module")
def matrix(request):
    ours = [each for each in request.session.items if "matrix" in getattr(each, "fixturenames", ())]
    running = Matrix([tuple(each.callspec.params[name] for name in ("subject", "dispatcher", "transport", "row")) for each in ours])
    yield running
    running.close()


@pytest.mark.parametrize(("subject", "dispatcher", "transport", "row"), tried())
def test_the_fault_does_what_the_catalogue_says(matrix, subject, dispatcher, transport, row):
    failure = matrix.failure(subject, dispatcher, transport, row=row)
    if failure:
        pytest.fail(f"{ROWS[row].fault}: {ROWS[row].expected}\n{failure}", pytrace=False)


@pytest.mark.parametrize(("subject", "dispatcher", "transport", "row"), proofs())
def test_the_standard_library_fails_it(matrix, subject, dispatcher, transport, row):
    failure = matrix.failure(subject, dispatcher, transport, row=row)
    mended = ROWS[row].mended
    if mended and sys.version_info >= tuple(map(int, mended.split("."))):
        assert failure is None
        return
    assert failure, f"the standard library passes {row}: the scenario does not detect the fault, or the catalogue is wrong"
    assert re.search(ROWS[row].shows, failure), failure


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("pair", [each for each in ROWS["CL9"].pairs() if each[0] != "fork"], ids="-".join)
def test_what_is_done_again_and_again_holds_in_long(pair):
    environment = {**with_path(TESTS), "FAULTS_SOAK": "1"}
    done = run(sys.executable, "-m", "faults.run", "socketkit", *pair, "CL9", "LR20", env=environment, guard=3600)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["failure"] for each in results] == [None, None]
