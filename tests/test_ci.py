"""The scripts of CI, as far as they can be tested in a moment: they are valid, run every version, and say what they lack."""

import ast
import os
import re
import shutil
import subprocess

import pytest

from helpers.support import ROOT

RUN = ROOT / ".ci/run"
SID = ROOT / ".ci/sid"


def versions():
    """Return the Python versions of the table in noxfile.py; nox itself need not be installed."""
    [table] = [
        node.value
        for node in ast.parse((ROOT / "noxfile.py").read_text("utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets) == "INTERPRETERS"
    ]
    return [key.value for key in table.keys]


@pytest.mark.parametrize("script", [RUN, SID], ids=["run", "sid"])
def test_a_script_is_executable_and_valid(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True, timeout=30)


def test_ci_runs_the_tests_and_those_of_cpython_on_every_version():
    script = RUN.read_text("utf-8")
    loops = dict(re.findall(r'^ *for version in (.+); do\n.* session "(\w+)\(\$version\)"$', script, re.MULTILINE))
    assert {session: words for words, session in loops.items()} == {
        "tests_on": '"${versions[@]}"',
        "cpython": '3.11 "${versions[@]}"',  # the test command of README runs on 3.11
    }
    named = re.findall(r"versions\+?=\(([\d. ]+)\)", script)
    assert ["3.11", *" ".join(named).split()] == versions()


def test_a_machine_that_cannot_have_debian_sid_is_told_why_and_its_tests_are_skipped(tmp_path):
    """Whether or not this is root: no program is there but those that the script starts with."""
    for program in ("bash", "dirname"):
        (tmp_path / program).symlink_to(shutil.which(program))
    done = subprocess.run(
        [shutil.which("bash"), SID, "true"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 77
    assert re.fullmatch(r"Debian sid, .*, is not available: (only root .*|this machine has no apt-get)\n", done.stderr)
    assert done.stdout == ""
