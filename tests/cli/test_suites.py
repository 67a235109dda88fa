"""CPython's own tests of what is built on `socketserver`, as this interpreter has them, under `socketkit run`."""

import importlib.util
import re
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.compat,
    pytest.mark.timeout(240),
    pytest.mark.skipif(importlib.util.find_spec("test.libregrtest") is None, reason="this interpreter comes without its tests"),
]

SUITES = ["test_socketserver", "test_httpservers", "test_xmlrpc", "test_docxmlrpc", "test_wsgiref", "test_logging"]


def results(*command):
    """Return the counts that regrtest sums up, such as ``run=27``."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=230, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    [counts] = re.findall(r"^Total tests: (.*)$", done.stdout, re.MULTILINE) or [re.findall(r"== Tests result: .*", done.stdout)[-1]]
    return counts, done.stderr


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_runs_in_full_and_green_with_the_skips_it_has_anyway(suite):
    regrtest = ("-m", "test", "-u", "network", suite)
    plain, _ = results(sys.executable, *regrtest)
    ours, imported = results(sys.executable, "-X", "importtime", "-m", "socketkit", "run", *regrtest, "--dont-add-python-opts")
    assert ours == plain
    assert "socketkit.socketserver" in imported.partition("libregrtest")[2]


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
    assert re.match(r"\+ .* -E .*_child run -m test .*--dont-add-python-opts", again), again
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
