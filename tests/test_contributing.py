"""Every command, file and link that CONTRIBUTING.md names exists."""

import ast
import os
import re
import shlex
import sys
import tomllib

import pytest

from helpers.support import ROOT
from socketkit.testing.programs import run

PAGE = ROOT / "CONTRIBUTING.md"
TEXT = PAGE.read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

COMMANDS = re.findall(r"^\| [^|`]+ \| `([^`]+)` \|$", TEXT, re.MULTILINE)
"""The commands of the table, as they are typed."""

PATHS = sorted(set(re.findall(r"`((?:\w+|\.\w+)/[\w./-]*|\w+\.(?:py|md|toml))`", TEXT)))
LINKS = re.findall(r"\]\(([^)#:]+)\)", TEXT)


def words(command):
    return [shlex.split(part) for part in command.split("&&")]


def sessions():
    """Return the sessions of noxfile.py with their docstrings; nox itself need not be installed."""
    tree = ast.parse((ROOT / "noxfile.py").read_text("utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {each.name: ast.get_docstring(each) for each in functions if any("session" in ast.unparse(mark) for mark in each.decorator_list)}


def session_name(session):
    """Return the name of a session without the parameter that selects one of its runs, as in ``tests_on(3.14)``."""
    return session.partition("(")[0]


def is_installable(package):
    """Return whether ``pip install`` finds the package: a folder of the checkout and its extras."""
    place, _, extras = package.partition("[")
    project = tomllib.loads((ROOT / place / "pyproject.toml").read_text("utf-8"))["project"]
    return set(filter(None, extras.rstrip("]").split(","))) <= project.get("optional-dependencies", {}).keys()


def has_test(node):
    path, _, name = node.partition("::")
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return not name or name in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}


def check(program, *arguments):
    """Fail unless a developer can type this at the root of the checkout, once the environment is set up."""
    if program == "nox":
        assert arguments[0] == "-s"
        assert session_name(arguments[1]) in sessions()
    elif program == "pip":
        assert arguments[0] == "install"
        assert all(is_installable(each) for each in arguments[1:] if each != "-e"), arguments
    elif program == "pytest":
        assert all(has_test(each) for each in arguments if each.startswith("tests")), arguments
    elif program == "pre-commit":
        assert arguments == ("install",)
        assert (ROOT / ".pre-commit-config.yaml").exists()
    else:
        assert (program, *arguments) in {("python3", "-m", "venv", ".venv"), (".", ".venv/bin/activate")}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_typed(command):
    for each in words(command):
        check(*each)


def test_there_is_a_command_for_every_session_and_for_each_daily_task():
    programs = [each for command in COMMANDS for each in words(command)]
    named = {session_name(each[2]) for each in programs if each[0] == "nox"} | {"tests"}  # plain pytest, in the environment at hand
    assert named == sessions().keys()
    assert {"pip", "pre-commit", "pytest", "nox"} <= {each[0] for each in programs}


@pytest.mark.parametrize("session", sessions())
def test_every_session_says_what_it_does(session):
    assert sessions()[session]


def test_the_environment_has_every_tool_that_a_command_needs():
    extras = PROJECT["optional-dependencies"]
    [ours] = [each for each in extras["dev"] if each.startswith("socketkit[")]
    names = {
        re.split(r"[\[>=<]", each)[0] for extra in re.findall(r"\w+", ours.partition("[")[2]) for each in [*extras[extra], *extras["dev"]]
    }
    assert {"nox", "pre-commit", "pytest", "pytest-xdist", "ruff", "mypy", "sphinx"} <= names


def test_the_hooks_run_tools_of_the_environment():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    assert set(re.findall(r"repo: (\S+)", hooks)) == {"local"}
    assert set(re.findall(r"entry: (\w+)", hooks)) <= {"ruff", "mypy"}


@pytest.mark.parametrize("path", PATHS)
def test_every_path_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("link", LINKS)
def test_every_link_leads_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(helpers\.[\w.]+)`", TEXT))))
def test_every_helper_exists(name):
    _, module, *attribute = name.split(".")
    tree = ast.parse((ROOT / "tests" / "helpers" / f"{module}.py").read_text("utf-8"))
    defined = {each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef)}
    assert set(attribute) <= defined


@pytest.mark.parametrize(
    "command",
    [
        "nox -s lnit",
        'nox -s "test_on(3.14)"',
        'pip install -e ".[dve]"',
        "pip install ./plugins/socketkit-none",
        "pytest tests/test_grammar.py::test_none",
        "pytest tests/none.py",
        "tox",
    ],
)
def test_a_command_that_does_not_work_is_found(command):
    with pytest.raises((AssertionError, OSError)):
        check(*shlex.split(command))


def test_the_page_is_shipped_with_what_it_names():
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert {PAGE.name, "noxfile.py"} <= set(hatch["include"])


@pytest.mark.parametrize("program", ["redis-benchmark", "dig"])
def test_a_test_is_skipped_if_one_of_its_clients_is_not_installed(program, tmp_path):
    tmp_path.joinpath(program).touch(0o755)
    test = "tests/cli/test_serve.py::test_redis_benchmark_and_dig_are_answered"
    env = {**os.environ, "PATH": str(tmp_path)}
    done = run(sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-rs", test, cwd=ROOT, env=env).stdout
    [other] = {"redis-benchmark", "dig"} - {program}
    assert f"{other} is not installed" in done
