"""Every row of the catalogue that has a scenario, under every dispatcher and transport that it applies to.

The scenarios of one pair run in a separate process; see `matrix`. A scenario with a proof also runs with the standard library's classes,
and has to fail there, except where a newer Python has mended it: this proves that the scenario detects the fault.
"""

import json
import os
import re
import subprocess
import sys
from itertools import product

import pytest

from faults.catalogue import ROWS
from faults.lab import DISPATCHERS, LAYERED, TRANSPORTS
from faults.scenarios import SCENARIOS
from helpers.support import TESTS
from socketkit.testing.programs import run, with_path

pytestmark = pytest.mark.timeout(150)


def tried():
    """Return a parameter for each row and pair, in the order in which they run."""
    return [
        pytest.param("socketkit", *pair, row.id, id=f"{row.id}-{'-'.join(pair)}")
        for pair in product(DISPATCHERS, (*TRANSPORTS, *LAYERED))
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
    """The process that runs the selected scenarios, and its results."""

    def __init__(self, wanted, folder):
        jobs = {}
        for *pair, row in wanted:
            jobs.setdefault(tuple(pair), []).append(row)
        (folder / "jobs").write_text(json.dumps([[*pair, rows] for pair, rows in jobs.items()]))
        self._errors = open(folder / "errors", "w+")  # noqa: SIM115 - see close
        self._results = {}
        command = [sys.executable, "-m", "faults.matrix", str(folder / "jobs")]
        environment = {**with_path(TESTS), "PYTHONFAULTHANDLER": "1"}
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=self._errors, text=True, start_new_session=True
        )

    def failure(self, *what):
        """Return the failure of one scenario, or None if it passed. Waits without a limit."""
        while what not in self._results:
            line = self._process.stdout.readline()
            if not line:
                self._errors.seek(0)
                pytest.fail(f"the matrix ended before {what}:\n{self._errors.read()}")
            *key, failure = json.loads(line)
            self._results[tuple(key)] = failure
        return self._results[what]

    def close(self):
        if self._process.poll() is None:
            os.killpg(self._process.pid, 9)
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


@pytest.fixture(scope="module")
def matrix(request, tmp_path_factory):
    """Run only the selected scenarios."""
    ours = [each for each in request.session.items if "matrix" in getattr(each, "fixturenames", ())]
    wanted = [tuple(each.callspec.params[name] for name in ("subject", "dispatcher", "transport", "row")) for each in ours]
    running = Matrix(wanted, tmp_path_factory.mktemp("matrix"))
    yield running
    running.close()


@pytest.mark.parametrize(("subject", "dispatcher", "transport", "row"), tried())
def test_the_fault_does_what_the_catalogue_says(matrix, subject, dispatcher, transport, row):
    failure = matrix.failure(subject, dispatcher, transport, row)
    if failure:
        pytest.fail(f"{ROWS[row].fault}: {ROWS[row].expected}\n{failure}", pytrace=False)


@pytest.mark.parametrize(("subject", "dispatcher", "transport", "row"), proofs())
def test_the_standard_library_fails_it(matrix, subject, dispatcher, transport, row):
    failure = matrix.failure(subject, dispatcher, transport, row)
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
    assert [each["failure"] for each in results if "row" in each] == [None, None]
