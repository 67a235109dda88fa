"""The pages generated from the catalogue, the contract and the figures: ``PYTHONPATH=.:tests python -m faults.pages`` writes them."""

from __future__ import annotations

import inspect
import textwrap
import tomllib
from collections import Counter
from pathlib import Path

from faults.catalogue import EVERY_DISPATCHER, EVERY_TRANSPORT, FAMILIES, ROWS, Row
from faults.figures import HOLD, MEASURES, NOT_SHOWN, RESULTS, WHERE, known, missed
from faults.scenarios import SCENARIOS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FAULTS = ROOT / "docs/reference/faults.md"
CONTRACT = ROOT / "docs/explanation/contract.md"
ENDURANCE = ROOT / "docs/explanation/endurance.md"
PROMISES = tomllib.loads((HERE / "contract.toml").read_text("utf-8"))

ORDER = ("tested", "not promised", "no such part")

NOTICE = "<!-- Generated from tests/faults/*.toml by faults.pages: change those files and run it. -->"

FAULTS_HEAD = """# Faults

What can go wrong around a server, what socketkit does about it, and what the standard library's `socketserver` does. Tests verify each row
marked *tested*, many of them under every dispatcher and every transport. The other rows give a reason: the fault concerns a part that
socketkit does not have, or a server cannot prevent it.

{summary}

## How it is tested

- A scenario runs for each dispatcher and transport named; *all* means {pairs} pairs, without those with layers, such as `tcp+tls`. Other
  tests run once.
- Of the scenarios that `socketserver` fails, {proofs} also run with its classes, and have to fail there. This proves that the test detects
  the fault. The last column marks them *shown*.
- Long tests, such as thousands of scans or hundreds of thousands of requests, run in a short form each time, and in full with
  `pytest -m soak`: see [endurance](../explanation/endurance.md).
- After each scenario, the tests check that no descriptor, thread, child or signal handler is left behind.

The promises behind these rows are in [the contract](../explanation/contract.md).
"""

ENDURANCE_HEAD = """# Endurance

How servers behave over many requests, many stops and many faults. Each figure was measured in its own process, on a machine that also ran
other programs. Rely on the counts: the times depend on that machine. The tests run a short form of each measurement.
`PYTHONPATH=.:tests python -m faults.figures` runs all of them in full, which takes about an hour; `--only idle slow` runs only those two.

## Notes on the figures

- The figures were measured one after another, while tests ran and the last faults were being fixed. Each row names its commit.
- The stampede under `prefork` kills workers, but injects no errors of `accept`: each worker would have its own queue of errors, and every
  new worker would add one. A first run with both did not finish and was abandoned.
- If memory or a system call fails, a request may never end: its connection stays open until the client closes it. There are three causes.
  CPython's `accept` loses the new descriptor if it cannot allocate the address. asyncio does not report a descriptor that it cannot watch.
  A unit of work that fails before its error handling begins is logged, but not closed. socketkit promises only that the server keeps
  serving, or ends with the error.
- If CPython cannot allocate memory for itself, it may crash, leave a `threading` lock locked, or wait indefinitely for a thread that never
  started. This is what happened to the servers that hung.
- The [benchmark](measurements.md) compares throughput with all defaults on. This page does not.
- Leaks over `unix-dgram` were measured twice. Clients and server share the process. With clients that each bound a file, it grew by 0.3 to
  1.0 MB under every dispatcher, which is within the limit. With names that the kernel chooses, it hardly grew. The page shows the second
  measurement.
"""

CONTRACT_HEAD = """# The contract

What socketkit promises about reliability. Each promise lists the [faults](../reference/faults.md) that could break it. Faults marked
*tested* have tests that verify the promise. socketkit promises nothing about parts that it does not have yet.
"""


def text_of(text: str) -> str:
    return text.replace("|", "\\|")


def where(row: Row) -> str:
    """Return the pairs that a row's scenario runs for, as text."""
    if row.id not in SCENARIOS:
        return ""
    dispatchers = "all dispatchers" if row.dispatchers == EVERY_DISPATCHER else ", ".join(f"`{each}`" for each in row.dispatchers)
    transports = "all transports" if row.transports == EVERY_TRANSPORT else ", ".join(f"`{each}`" for each in row.transports)
    both = "all" if (dispatchers, transports) == ("all dispatchers", "all transports") else f"{dispatchers} over {transports}"
    return "; ".join((both, *(f"except {pattern(each)}: {reason}" for each, reason in row.unless.items())))


def pattern(pair: str) -> str:
    dispatcher, _, transport = pair.partition("/")
    named = [f"`{each}`" for each in (dispatcher, transport) if each not in {"", "*"}]
    return " over ".join(named) or "all"


def state(row: Row) -> str:
    """Return the status of a row, and the reason for it."""
    if row.not_ours:
        return f"not promised: {row.not_ours}"
    if row.part:
        return f"no such part yet: {row.part}"
    return f"*{row.state(row.id in SCENARIOS)}*"


def theirs(row: Row) -> str:
    return ": ".join(filter(None, (row.stdlib, row.stdlib_does))) + (" (shown)" if row.proof else "")


def tests_of(row: Row) -> str:
    scenario = ["scenario"] * (row.id in SCENARIOS)
    return ", ".join((*scenario, *(f"`{each.partition('::')[2]}`" for each in row.tests)))


def faults() -> str:
    words = Counter(row.state(row.id in SCENARIOS) for row in ROWS.values())
    summary = f"Of {len(ROWS)} faults: {', '.join(f'{words[word]} {word}' for word in ORDER if words[word])}."
    proofs = sum(bool(row.proof) for row in ROWS.values())
    lines = [NOTICE, "", FAULTS_HEAD.format(summary=summary, proofs=proofs, pairs=len(EVERY_DISPATCHER) * len(EVERY_TRANSPORT))]
    for family, title in FAMILIES.items():
        lines += [
            f"## {title}",
            "",
            "| | fault | what socketkit does | status | tested under | tests | `socketserver` |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in ROWS.values():
            if row.family == family:
                cells = (row.id, row.fault, row.expected or "no promise", state(row), where(row), tests_of(row), theirs(row))
                lines.append("| " + " | ".join(map(text_of, cells)) + " |")
        lines.append("")
    lines += ["## See also", "", "[Testing](testing.md) · [Accept errors](accept-errors.md) · [Differences](differences.md)"]
    return "\n".join(lines) + "\n"


def contract() -> str:
    lines = [NOTICE, "", CONTRACT_HEAD]
    for name, promise in PROMISES.items():
        rows = [ROWS[row] for row in promise["rows"].split()]
        by_state: dict[str, list[str]] = {}
        for row in rows:
            word = row.state(row.id in SCENARIOS)
            by_state.setdefault(word, []).append(f"[{row.id}](../reference/faults.md#{FAMILIES[row.family].lower().replace(' ', '-')})")
        told = [f"**{word[0].upper()}{word[1:]}**: {', '.join(by_state[word])}." for word in ORDER if word in by_state]
        lines += [f"## {name}. {promise['title']}", "", textwrap.fill(promise["text"], 140), "", *told, ""]
    lines += ["## See also", "", "[Faults](../reference/faults.md) · [States](states.md) · [Decisions about serving](decisions-serving.md)"]
    return "\n".join(lines) + "\n"


OVER = {name for name, subjects in WHERE.items() if any(each.endswith("/tcp") for each in subjects)}
"""Figures measured for a dispatcher over a transport."""


def cell(value: object) -> str:
    return "not measured" if value is None else f"{value:,}"


def endurance() -> str:
    lines = [f"<!-- Generated from {RESULTS.name} by faults.pages: do not edit this page. -->", "", ENDURANCE_HEAD]
    for name, measured in known().items():
        columns = [column for column in next(iter(measured.values())) if column not in NOT_SHOWN]
        lines += [f"## {name.capitalize()}", "", textwrap.fill(" ".join((inspect.getdoc(MEASURES[name]) or "").split()), 140), ""]
        lines += ["Limits: " + ", ".join(f"{what} {most:,}" for what, most in HOLD[name].items()) + ".", ""]
        lines += [f"| | {' | '.join(columns)} | | measured |", "|---" * (len(columns) + 3) + "|"]
        for subject in sorted(measured, key=lambda each, order=WHERE[name]: order.index(each) if each in order else len(order)):
            figure = measured[subject]
            verdict = "**missed**" if missed(name, figure) else "met"
            when = f"{figure['date']}, commit {figure['commit']}" if "date" in figure else "earlier"
            over = subject.replace("/", " over ") if name in OVER else subject
            lines.append(f"| {' | '.join((over, *(cell(figure[column]) for column in columns), verdict, when))} |")
        lines.append("")
    lines += ["## See also", "", "[Faults](../reference/faults.md) · [The contract](contract.md) · [Measurements](measurements.md)"]
    return "\n".join(lines) + "\n"


PAGES = {FAULTS: faults, CONTRACT: contract, ENDURANCE: endurance}

if __name__ == "__main__":
    for page, make in PAGES.items():
        page.write_text(make(), "utf-8")
