"""Endurance figures: how servers behave over many requests, many stops and many faults.

``python -m faults.figures`` measures all of them in full, each in its own process, and writes them to the file behind the page.
``--only NAME...`` measures some. The program prints its progress and the duration of the last run. All figures take about an hour.
``--scale 0.01`` is for a trial run with a hundredth of each size, which writes nothing.
`HOLD` contains the limits.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from faults import crowds, deaths, fuzz, lasting, shortages
from faults.lab import DISPATCHERS, TRANSPORTS, Figure, Lab
from faults.shortages import CannotMeasureError
from helpers.support import ROOT, TESTS
from socketkit.testing.programs import with_path

RESULTS = ROOT / "docs/explanation/endurance.json"


def in_lab(measured: Callable[[Lab, int], Figure]) -> Callable[[str, int], Figure]:
    """Return the measurement as a function of a dispatcher and transport, such as ``pool/tcp``."""

    @functools.wraps(measured)
    def measure(subject: str, size: int) -> Figure:
        dispatcher, transport = subject.split("/")
        with tempfile.TemporaryDirectory(prefix="f") as folder, Lab(dispatcher, transport, "socketkit", Path(folder)) as lab:
            return measured(lab, size)

    return measure


MEASURES: dict[str, Callable[[str, int], Figure]] = {
    "leaks": in_lab(lasting.leaks),
    "idle": crowds.idle,
    "kills": deaths.kills,
    "restarts": deaths.restarts,
    "emfile": in_lab(shortages.emfile),
    "stops": in_lab(lasting.stops),
    "slow": crowds.slow,
    "scans": in_lab(lasting.scans),
    "storm": in_lab(lasting.storm),
    "stampede": in_lab(lasting.stampede),
    "fuzz": fuzz.fuzz,
    "memory": shortages.memory,
    "calls": shortages.calls,
}
HOLD: dict[str, dict[str, float]] = {
    "leaks": {"bytes added": 1 << 20, "descriptors added": 0, "threads added": 0, "left behind": 0, "wrong": 0},
    "idle": {"bytes/connection": 8192, "threads added": 0, "% of one processor": 0.5, "fresh p99 ms": 50, "stop ms": 2000},
    "kills": {"wrong": 0, "refused": 0, "hung": 0, "lost unexpectedly": 0, "ms to full strength": 1000},
    "restarts": {"not answered": 0, "dropped by the kernel": 0},
    "emfile": {
        "attempts/s": 20,
        "% of one processor": 3,
        "log lines": 2,
        "active requests failed": 0,
        "wrong": 0,
        "ms until served": 1000,
    },
    "stops": {"p99 ms": 50},
    "slow": {"fresh p99 ms added": 20, "disconnected early": 0, "disconnected late, ms": 1000},
    "scans": {"not counted": 0, "failed": 0, "log lines": 10, "tracebacks": 0},
    "storm": {"concurrent": 4, "not answered": 0},
    "stampede": {"fresh requests not answered": 0},
    "fuzz": {"never accepted": 0, "wrong": 0},
    "memory": {"crashed": 0, "hung": 0},
    "calls": {"ended": 0, "crashed": 0, "hung": 0},
}
"""The limit of each figure."""

TIMES = {
    "% of one processor",
    "fresh p99 ms",
    "stop ms",
    "ms to full strength",
    "ms until served",
    "fresh p99 ms added",
    "disconnected late, ms",
}
"""Figures that get worse if the machine is busy with other work."""

MEASURED = [dispatcher for dispatcher in DISPATCHERS if dispatcher != "interpreters"]
"""The dispatchers that every supported version of Python has."""

ON_TCP = [f"{dispatcher}/tcp" for dispatcher in MEASURED]
WHERE: dict[str, list[str]] = {
    "leaks": sorted(f"{dispatcher}/{transport}" for dispatcher in MEASURED for transport in TRANSPORTS),
    "idle": ["pool", "adaptive", "adaptive, messages", "asyncio"],
    "kills": ["sync", "adaptive"],
    "restarts": ["thread", "pool:8", "adaptive", "asyncio", "prefork:2"],
    "emfile": ON_TCP,
    "stops": [each for each in ON_TCP if each != "prefork/tcp"],
    "slow": ["adaptive, messages", "pool, messages", "adaptive, a thread each", "thread", "asyncio"],
    "scans": [each for each in ON_TCP if each != "fork/tcp"],
    "storm": ["pool/tcp", "pool/unix"],
    "stampede": ON_TCP,
    "fuzz": list(fuzz.CASES),
    "memory": ["sync", "thread", "fork", "pool:4", "adaptive", "prefork:2/sync", "asyncio"],
    "calls": ["sync", "thread", "fork", "pool:4", "adaptive", "prefork:2/sync", "asyncio"],
}
"""The subjects of each measurement: a dispatcher over a transport, or another name that the measurement knows."""

LONG = {
    "leaks": 100_000,
    "idle": 9_990,  # leaves a server ten of the ten thousand descriptors that many systems allow
    "kills": 600,
    "restarts": 200,
    "emfile": 100,
    "stops": 1000,
    "slow": 1000,
    "scans": 10_000,
    "storm": 2000,
    "stampede": 3000,
    "fuzz": 1_000_000,
    "memory": 300,
    "calls": 20,
}

NOT_SHOWN = {"left behind", "seed", "seconds measured", "commit", "date", "examples", "never accepted"}
"""Values in the file that are not columns of the page."""


def long(name: str, subject: str) -> int:
    """Return the size of the full measurement."""
    tenth = subject == "configuration" or subject.startswith("fork/")
    return LONG[name] // (10 if tenth and name != "emfile" else 1)  # each takes ten times as long


def missed(name: str, figure: Figure) -> list[str]:
    """Return the values above their limits. A value of None was not measured; a list counts by its length."""
    found = {what: len(value) if isinstance(value, list) else value for what, value in figure.items()}
    return [f"{what}: {found[what]}, at most {most}" for what, most in HOLD[name].items() if found[what] is not None and found[what] > most]


NOT_HERE = 77
"""The exit code for a system that lacks something the measurement needs."""


def measure(name: str, subject: str, size: int, seconds: float | None = None) -> Figure:
    """Measure in a separate process. Raises: CannotMeasureError."""
    prefix = deaths.in_own_network() if name == "restarts" else []
    command = [*prefix, sys.executable, "-m", "faults.figures", "--one", name, subject, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=with_path(TESTS, ROOT))
    if done.returncode == NOT_HERE:
        raise CannotMeasureError(done.stderr.strip())
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    if done.stderr:
        print(done.stderr[-20_000:], file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def keep(name: str, subject: str, figure: Figure) -> None:
    """Write a figure to the results file, with the commit and the date."""
    results = known()
    results.setdefault(name, {})[subject] = {**figure, "commit": commit(), "date": time.strftime("%Y-%m-%d")}
    in_order = {each: results[each] for each in MEASURES if each in results}
    RESULTS.write_text(json.dumps(in_order, indent=1) + "\n")


def known() -> dict[str, dict[str, Figure]]:
    """Return the figures in the results file."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def commit() -> str:
    """Return the current commit, with a plus if files other than the results have changed; "" outside a repository."""
    with contextlib.suppress(FileNotFoundError):
        changes = _git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
        return _git("describe", "--always", "--exclude=*") + "+" * bool(changes)
    return ""


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def all_of(names: list[str], scale: float) -> bool:
    """Measure these figures, and print the progress; return whether all are within their limits."""
    todo = [(name, subject) for name in names for subject in WHERE[name]]
    last = known()
    needed = sum(last.get(name, {}).get(subject, {}).get("seconds measured", 0) for name, subject in todo)
    print(f"{len(todo)} figures; the last run of those that are known took {needed / 60:.0f} minutes", flush=True)
    began, hold = time.monotonic(), True
    for number, (name, subject) in enumerate(todo, 1):
        print(f"{number}/{len(todo)} after {(time.monotonic() - began) / 60:.1f} min: {name} {subject} ...", end=" ", flush=True)
        started = time.monotonic()
        try:
            figure = measure(name, subject, max(1, round(long(name, subject) * scale)))
        except (CannotMeasureError, AssertionError) as error:
            hold = hold and isinstance(error, CannotMeasureError)
            print(f"not measured: {error}", flush=True)
            continue
        figure["seconds measured"] = round(time.monotonic() - started, 1)
        wrong = missed(name, figure)
        hold = hold and not wrong
        print("; ".join(wrong) or "met", f"({figure['seconds measured']} s)", flush=True)
        if scale == 1:
            keep(name, subject, figure)
        else:
            print(f"  {figure}", flush=True)
    return hold


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m faults.figures", description="Measure the endurance figures, which takes about an hour."
    )
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), help="measure only these figures")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply each size by this; any value but 1 writes nothing")
    parser.add_argument(
        "--one", nargs=3, metavar=("NAME", "SUBJECT", "SIZE"), help="measure this figure in this process, and print it as JSON"
    )
    arguments = parser.parse_args()
    if arguments.one:
        name, subject, size = arguments.one
        try:
            print(json.dumps(MEASURES[name](subject, int(size))))
        except CannotMeasureError as error:
            print(error, file=sys.stderr)
            sys.exit(NOT_HERE)
        return
    sys.exit(not all_of(arguments.only, arguments.scale))


if __name__ == "__main__":
    main()
