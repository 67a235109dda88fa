"""CPython's own tests of what is built on `socketserver`, as this interpreter has them, under `socketkit run`."""

import importlib.util
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = [
    pytest.mark.compat,
    pytest.mark.timeout(240),
    pytest.mark.skipif(importlib.util.find_spec("test.libregrtest") is None, reason="this interpreter comes without its tests"),
]

SUITES = ["test_socketserver", "test_httpservers", "test_xmlrpc", "test_docxmlrpc", "test_wsgiref", "test_logging"]


def results(arguments):
    """Run Python with the arguments; return the counts that regrtest sums up, such as ``run=27``, and its standard error."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=230, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    [counts] = re.findall(r"^Total tests: (.*)$", done.stdout, re.MULTILINE) or [re.findall(r"== Tests result: .*", done.stdout)[-1]]
    return counts, done.stderr


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_runs_in_full_and_green_with_the_skips_it_has_anyway(suite):
    regrtest = ("-m", "test", "-u", "network", suite)
    under_run = ("-X", "importtime", "-m", "socketkit", "run", *regrtest, "--dont-add-python-opts")
    with ThreadPoolExecutor(2) as at_once:  # they wait most of the time
        (plain, _), (ours, imported) = at_once.map(results, (regrtest, under_run))
    assert ours == plain
    assert "socketkit.socketserver" in imported.partition("libregrtest")[2]


ONE_STRATEGY = {
    "adaptive": set(),
    "pool:8": set(),
    "thread": {"ErrorHandlerTest.test_sync_not_handled", "MiscTestCase.test_threads_reaped"},
    "sync": {
        "ErrorHandlerTest.test_threading_not_handled",
        "ErrorHandlerTest.test_forking_not_handled",
        "MiscTestCase.test_threads_reaped",
    },
    "fork": {
        "ErrorHandlerTest.test_sync_not_handled",
        "MiscTestCase.test_threads_reaped",
        "SocketWriterTest.test_basics",
        "SocketWriterTest.test_write",
    },
}
"""By dispatcher, the tests that fail because they ask for another strategy than that."""

ENDLESS = {"fork": ("test_threading_handled", "test_threading_not_handled", "*LoggingTestCase.test_get", "*LoggingTestCase.test_err")}
"""By dispatcher, the tests that ask for another one and wait for it for ever, or make others do so."""


@pytest.mark.parametrize("dispatcher", ONE_STRATEGY)
def test_under_a_dispatcher_only_those_tests_fail_that_ask_for_another_strategy(dispatcher):
    ignored = [word for name in ENDLESS.get(dispatcher, ()) for word in ("-i", name)]
    command = [
        sys.executable,
        "-m",
        "socketkit",
        "run",
        "--dispatcher",
        dispatcher,
        "-m",
        "test",
        "--dont-add-python-opts",
        "-u",
        "network",
        "-v",
        *ignored,
    ]
    done = subprocess.run([*command, *SUITES[:2]], capture_output=True, text=True, timeout=230, check=False)
    said = done.stdout + done.stderr
    failed = set(re.findall(r"^(?:FAIL|ERROR): \w+ \([\w.]*\.(\w+\.\w+)\)", said, re.MULTILINE))
    assert len(re.findall(r"^Ran \d+ tests", said, re.MULTILINE)) == 2, said
    assert failed == ONE_STRATEGY[dispatcher], said


def test_regrtest_goes_on_under_run_when_it_starts_itself_again_ignoring_the_environment():
    command = [
        sys.executable,
        "-m",
        "socketkit",
        "run",
        "-m",
        "test",
        "-u",
        "network",
        "--fast-ci",
        "test_socketserver",
        "test_httpservers",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=230, check=False)
    assert done.returncode == 0, done.stdout
    again = done.stdout.partition("\n")[0]
    assert re.match(r"\+ .* -E .*_dropin/child run -m test .*--dont-add-python-opts", again), again
    assert "Result: SUCCESS" in done.stdout


def test_the_processes_that_regrtest_hands_its_tests_to_have_the_drop_in():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "socketkit", "run", "-m", "test", "-u", "network", "-j2", "-v", "test_socketserver"],
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "socketkit.socketserver" in done.stdout  # where it shows what they wrote
