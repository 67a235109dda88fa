"""The commands that developers run each day. ``nox --list`` shows the sessions; without ``-s``, lint, docs and tests run.

Every session runs in a new environment with only the packages that it installs, so a missing dependency causes an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "docs", "tests"]
nox.options.reuse_existing_virtualenvs = False
nox.options.error_on_external_run = True

ROOT = Path(__file__).resolve().parent
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))

SID = str(ROOT / ".ci/sid")
"""The script that runs a command in Debian sid, which has the Python versions that pyenv has not."""

INTERPRETERS = {"3.11": "3.11", "3.12": "3.12.1", "3.13": "3.13.0", "3.14": SID, "3.15": SID}
"""The Python versions that socketkit is tested on, each with its pyenv release or with the script that runs a command where it is."""

VERSIONED = ("tests/compat", "tests/dispatchers", "tests/faults")
"""The tests that a new Python is most likely to break: of the classic classes, of threads and processes, of exits and failures."""

SUITES = ("test_socketserver", "test_httpservers", "test_xmlrpc", "test_docxmlrpc", "test_wsgiref", "test_logging")


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests but the plugins', four at a time; arguments after -- go to pytest."""
    session.install(".[test]")
    session.run("pytest", "-n", "4", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style with ruff, that of plugins too, and socketkit's types with mypy."""
    session.install(".[test]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session
@nox.parametrize("plugin", PLUGINS, ids=PLUGINS)
def plugins(session: nox.Session, plugin: str) -> None:
    """Prove each plugin alone, with socketkit's wheel: its types, its own tests, and the tests in `tests/` that need it."""
    wheel, folder = built_wheel(session), ROOT / "plugins" / plugin
    session.install(wheel, f"{folder}[test]", "mypy>=1.11")
    with session.chdir(folder):  # where the checkout's socketkit cannot be imported
        session.run("python", "-c", "import socketkit; print(socketkit.__file__); assert 'site-packages' in socketkit.__file__")
        session.run("mypy", "--strict", "src")
        session.run("pytest", *two_at_a_time(folder), *session.posargs)
    session.install(f"{wheel}[test]")  # only now, so that the plugin's own extra has to name all that its tests need
    session.run("pytest", "-m", "plugin", *marked())


def marked() -> list[str]:
    """Return the files in `tests/` with tests that need a plugin: to collect all others takes longer than to run these."""
    return [str(path) for path in sorted(ROOT.glob("tests/**/test_*.py")) if re.search(r"\bGREEN\b|mark\.plugin", path.read_text("utf-8"))]


_built: list[str] = []
"""The path of socketkit's wheel, once a session has built it."""


def built_wheel(session: nox.Session) -> str:
    """Return the path of socketkit's wheel, which the first session of this process builds."""
    if not _built:
        folder = ROOT / "build/wheel"
        shutil.rmtree(folder, ignore_errors=True)
        session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
        _built.extend(map(str, folder.glob("socketkit-*.whl")))
    [wheel] = _built
    return wheel


def two_at_a_time(plugin: Path) -> tuple[str, ...]:
    """Return pytest's options to run two tests at a time, if the plugin's tests may."""
    project = tomllib.loads((plugin / "pyproject.toml").read_text("utf-8"))["project"]
    parallel = any(each.startswith("pytest-xdist") for each in project["optional-dependencies"]["test"])
    return ("-n", "2") if parallel else ()


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into build/docs; a warning or a broken reference is an error."""
    session.install(".[docs]")
    session.run("sphinx-build", "-q", "-N", "-n", "-W", "--keep-going", "docs", "build/docs")


@nox.session(python=False)
@nox.parametrize(
    ("version", "paths"),
    [("3.12", ("tests/compat",)), ("3.13", ("tests/compat",)), ("3.14", VERSIONED), ("3.15", VERSIONED)],
    ids=["3.12", "3.13", "3.14", "3.15"],
)
def tests_on(session: nox.Session, version: str, paths: tuple[str, ...]) -> None:
    """Run the tests that a version is most likely to break; arguments after -- replace the paths, and `-- tests` runs all."""
    run = environment(session, version, f"{ROOT}[test]")
    run("pytest", "-n", "4", *(session.posargs or paths))


@nox.session(python=False)
@nox.parametrize(
    ("version", "dispatchers"),
    [(version, ("adaptive", "pool:8") if version == "3.11" else ("adaptive",)) for version in INTERPRETERS],
    ids=list(INTERPRETERS),
)
def cpython(session: nox.Session, version: str, dispatchers: tuple[str, ...]) -> None:
    """Run CPython's own tests under `socketkit run`, then under each dispatcher; arguments after -- replace the dispatchers."""
    run = environment(session, version, str(ROOT))
    folder = Path(session.create_tmp()).resolve()
    which = folder / "which.py"
    which.write_text('import socketserver; print(socketserver.__file__); assert "socketkit" in socketserver.__file__\n')
    socketkit = ("python", "-m", "socketkit", "run")
    suites = ("-m", "test", "--dont-add-python-opts", "--timeout", "120", "-u", "network", *SUITES)
    with session.chdir(folder):  # outside the checkout, so that the tests use the installed package
        run(*socketkit, str(which))
        run(*socketkit, *suites)
        for dispatcher in session.posargs or dispatchers:
            run(*socketkit, "--dispatcher", dispatcher, *suites)


def environment(session: nox.Session, version: str, package: str) -> Callable[..., None]:
    """Make an environment of this Python with this package. Return a function that runs one of its programs with arguments.

    If there is no such Python, skip the session; with CI set, that is an error.
    """
    words = find_interpreter(version)
    if words is None:
        message = f"Python {version} is missing: {reason(version)}"
        if os.environ.get("CI"):
            session.error(message)
        session.skip(message)
    *within, interpreter = words
    folder = ROOT / f"build/python{version}"

    def run(program: str, *arguments: str) -> None:
        session.run(*within, str(folder / "bin" / program), *arguments, external=True)

    session.run(*within, interpreter, "-m", "venv", "--clear", str(folder), external=True)
    run("python", "--version")
    run("pip", "install", "--quiet", package)
    return run


def find_interpreter(version: str) -> tuple[str, ...] | None:
    """Return the words that start a Python of this version, or None if it does not run. pyenv's shims run only if a version is selected."""
    program, place = f"python{version}", INTERPRETERS[version]
    if place == SID:
        return (SID, program) if _runs(SID, program) else None
    paths = (pyenv_path(program, place), shutil.which(program))
    return next(((path,) for path in paths if path and _runs(path)), None)


def pyenv_path(program: str, release: str) -> str | None:
    """Return the path of a program of this pyenv release, or None."""
    pyenv = shutil.which("pyenv")
    if pyenv is None:
        return None
    found = subprocess.run(  # noqa: S603 - a fixed command
        [pyenv, "which", program], env={**os.environ, "PYENV_VERSION": release}, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() if found.returncode == 0 else None


def reason(version: str) -> str:
    """Return why no Python of this version runs."""
    if INTERPRETERS[version] == SID:
        return ".ci/sid says above why"
    return f"neither pyenv's {INTERPRETERS[version]} nor python{version} on PATH runs, with its own tests"


def _runs(*words: str) -> bool:
    command = [*words, "-c", "import venv, ensurepip, test.support"]
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603 - an interpreter


@nox.session
def benchmark(session: nox.Session) -> None:
    """Run the benchmark; arguments after -- go to it, and `-- setup` installs the peers."""
    session.install(".")
    session.run("python", "-m", "tests.benchmarks", *session.posargs)
