"""Requirements of the benchmark outside the repository: an interpreter with the peers, the client programs, a C compiler."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

PEERS = ("gevent", "uvloop", "cheroot")
"""Distributions that socketkit is compared with."""

PACKAGES = {
    "redis-benchmark": "redis-tools",
    "dnsperf": "dnsperf",
    "wrk": "wrk",
    "cc": "gcc",
    "openssl": "openssl",
    "nginx": "nginx-light",
}
"""Programs, each with its Debian package."""

PROGRAMS = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
"""Where programs are looked for. Debian's nginx is in /usr/sbin, which is only in root's PATH."""


class NotSetUpError(Exception):
    """A requirement is missing; the message names it and the remedy."""


def home() -> Path:
    """Return the folder of the virtual environment: in the user's cache, one per version of Python."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache_folder / "socketkit-benchmarks" / str(sys.implementation.cache_tag)


def interpreter() -> Path:
    """Return the interpreter that runs the servers. Raises: NotSetUpError."""
    found = home() / "bin" / "python"
    if not found.exists():
        raise NotSetUpError("run `python -m tests.benchmarks setup` first: it creates the environment that the servers run in")
    return found


def missing() -> list[str]:
    """Return the Debian packages whose programs are not installed."""
    return sorted({package for program, package in PACKAGES.items() if shutil.which(program, path=PROGRAMS) is None})


def set_up() -> None:
    """Create the virtual environment with the peers and socketkit's dependencies. Raises: NotSetUpError if programs are missing."""
    core = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    venv.create(home(), with_pip=True)
    subprocess.run([interpreter(), "-m", "pip", "install", "--quiet", "--upgrade", *PEERS, *core], check=True)
    if missing():
        raise NotSetUpError(f"install these Debian packages: {' '.join(missing())}")


@cache
def workshop() -> Path:
    """Return a temporary folder that is removed when the benchmark ends."""
    folder = tempfile.TemporaryDirectory(prefix="socketkit-benchmarks-")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


@cache
def compiled(name: str) -> Path:
    """Return the program compiled from ``servers/NAME.c``. Raises: subprocess.CalledProcessError."""
    program = workshop() / name
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", program, HERE / "servers" / f"{name}.c"], check=True)
    return program


@cache
def web_folder() -> Path:
    """Return a folder with one page of a kilobyte, ``page.html``."""
    folder = workshop() / "web"
    folder.mkdir()
    (folder / "page.html").write_text("<p>a kilobyte of page</p>\n" * 40)
    return folder


@cache
def certificate() -> Path:
    """Return a file with a certificate for localhost, signed by itself, and its key (EC, P-256). Raises: subprocess.CalledProcessError."""
    file = workshop() / "localhost.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", file]
    about = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(["openssl", "req", "-x509", *key, *about, "-out", file], check=True, capture_output=True)
    return file


@cache
def queries() -> Path:
    """Return a file of questions for dnsperf."""
    file = workshop() / "queries"
    file.write_text("example.com A\n")
    return file


def machine() -> dict[str, str]:
    """Return the properties that the figures depend on: processor, system, versions."""
    asked = "from importlib.metadata import version; print(*(version(each) for each in %r))" % (PEERS,)  # noqa: UP031 - braces within
    versions = subprocess.run([interpreter(), "-c", asked], check=True, capture_output=True, text=True).stdout.split()
    processor = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        "processor": f"{os.cpu_count()} x {processor or platform.machine()}",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **dict(zip(PEERS, versions, strict=True)),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
