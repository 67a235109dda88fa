"""The command: ``python -m tests.benchmarks [setup|list|run|report] [options]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import report, tools
from .figures import outcomes
from .guard import guard
from .processes import raise_limits
from .rows import ROWS, Row
from .running import measure


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exit with 2 if it is invalid."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Compare the speed of socketkit with alternatives.")
    parser.add_argument(
        "command",
        nargs="?",
        default="run",
        choices=("run", "list", "setup", "report"),
        help="run: measure (the default); list: name the rows; setup: install the peers; report: write the page from --json again",
    )
    parser.add_argument("--only", action="append", metavar="NAME", choices=[row.name for row in ROWS], help="a row to run; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side of a row runs (default 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a client's load lasts (default 3)")
    parser.add_argument(
        "--quick", action="store_true", help="measure briefly, and fail if a ratio to a peer is a third worse than recorded (3 minutes)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file; keep its rows that do not run again")
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write measurements.md and its figures to this folder, such as docs/explanation"
    )
    parser.add_argument("--note", metavar="TEXT", help="a remark, such as what disturbed the run; shown on the page")
    asked = parser.parse_args(words)
    if asked.command == "report" and not (asked.json and asked.report):
        parser.error("report needs --json FILE and --report FOLDER")
    if asked.quick and (asked.only or asked.json or asked.report):
        parser.error("--quick measures its own rows, and writes nothing; leave out --only, --json and --report")
    return asked


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 1 if something is missing, or has fallen."""
    asked = arguments(words)
    try:
        return _do(asked)
    except tools.NotSetUpError as error:
        print(error, file=sys.stderr)
        return 1


def _do(asked: argparse.Namespace) -> int:
    if asked.command == "setup":
        tools.set_up()
        return 0
    if asked.quick:
        return _guard()
    if asked.command == "list":
        for row in ROWS:
            print(f"{row.name:28}{row.work} ({row.client})")
        return 0
    results = json.loads(asked.json.read_text()) if asked.json and asked.json.exists() else {"rows": []}
    if asked.note is not None:
        results["note"] = asked.note
        if asked.json:
            _keep(results, asked.json)
    if asked.command == "run":
        _measure(asked, results)
    if asked.report:
        report.write(results, asked.report)
    return 0


def _prepare() -> None:
    """Check that everything is installed, before the first row. Raises: NotSetUpError."""
    if tools.missing():
        raise tools.NotSetUpError(f"install these Debian packages: {' '.join(tools.missing())}")
    tools.interpreter()
    raise_limits()


def _guard() -> int:
    _prepare()
    fallen = guard(lambda line: print(line, flush=True))
    print(f"{len(fallen) or 'none'} of the ratios became worse by more than a third")
    return 1 if fallen else 0


def _measure(asked: argparse.Namespace, results: dict[str, Any]) -> None:
    """Run the selected rows, and save each row as soon as it is measured. Raises: NotSetUpError."""
    _prepare()
    results["machine"] = tools.machine()
    for row in (row for row in ROWS if not asked.only or row.name in asked.only):
        _run(row, asked.rounds, asked.seconds, results)
        if asked.json:
            _keep(results, asked.json)


def _keep(results: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def _run(row: Row, rounds: int, seconds: float, results: dict[str, Any]) -> None:
    """Measure a row, print its results, and insert it into the results in the order of the table."""
    print(f"{row.name}: {row.work}", flush=True)
    found = measure(row, rounds, seconds, lambda line: print(line, flush=True))
    for outcome in outcomes(found):
        print(f"  {report.verdict(outcome)}", flush=True)
    order = [each.name for each in ROWS]
    kept = [each for each in results["rows"] if each["name"] != row.name and each["name"] in order]
    results["rows"] = sorted([*kept, found], key=lambda each: order.index(each["name"]))


if __name__ == "__main__":
    sys.exit(main())
