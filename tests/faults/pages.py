"""The pages that are made from the catalogue and the contract: ``PYTHONPATH=.:tests python -m faults.pages`` writes them."""

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

ORDER = ("held", "not promised", "no such part")

NOTICE = "<!-- Made from tests/faults/*.toml by faults.pages: change those and run it. -->"

FAULTS_HEAD = """# Faults

What can go wrong around a server, what socketkit does then, and what the standard library's `socketserver` does. Where it says *held*,
tests hold it; many run under every dispatcher and every transport. Otherwise the page says why: a fault of a part that socketkit does not
have can be met by nobody, and some are not for a server to prevent.

{summary}

## How it is tested

- A scenario runs for each dispatcher and transport named; *all* is {pairs} pairs. The rest are tests of their own.
- Of the faults that `socketserver` fails, {proofs} run with its classes as well, and have to fail there. That shows that the test sees
  the fault.
- What goes on for long, thousands of scans, hundreds of thousands of requests, is tested in short each time, and in long by
  `pytest -m soak`: see [endurance](../explanation/endurance.md).
- Each scenario is followed by an account of descriptors, threads, children and signal handlers: nothing may be left behind.

The promises behind these rows are in [the contract](../explanation/contract.md).
"""

ENDURANCE_HEAD = """# Endurance

What stays the same over many requests, many stops and much that goes wrong. Each figure was measured in a process of its own, on a machine
that did other things too: the counts are what to look at, and times are those of that machine. The tests measure the same in short each
time; `PYTHONPATH=.:tests python -m faults.figures` measures all of it in long, about an hour, and with `--only idle slow` a part of it.

## What these figures are worth

- They were measured one after the other in one evening, beside the tests and while the last faults were mended: each row names its commit.
- The stampede under `prefork` kills workers and injects no errors of `accept`: each worker would have a queue of them of its own, which
  grows with every new worker. A first run with both did not come to an end and was given up.
- A request without an end, where memory or system calls fail, is one whose connection stays open until its client goes. CPython's `accept`
  forgets the descriptor it has just got if there is no memory for the address; asyncio does not tell of a descriptor that it cannot watch;
  and a unit of work that meets the failure before its own guard is logged and not closed. Nothing is promised of them but that the server
  goes on, or ends with its error. Where CPython has no memory for its own work it can also crash, leave a lock of `threading` locked for
  ever, or wait for ever for a thread that could not even be called: that is what those servers met that hung.
- How the throughput compares with all defaults on is [measured](measurements.md) with the benchmark, and not here.
- Leaks over `unix-dgram` were measured twice. With clients that bound a file each the process grew by 0.3 to 1.0 MB, within the limit but
  under every dispatcher; with names that the kernel chooses, by next to nothing. The second is shown. Clients and server share the process.
"""

CONTRACT_HEAD = """# The contract

What socketkit promises about reliability. Each promise stands with the [faults](../reference/faults.md) that would break it: those that
tests show it to withstand are *held*. Of parts that socketkit does not have yet, such as TLS, nothing is promised until it has them.
"""


def text_of(text: str) -> str:
    return text.replace("|", "\\|")


def where(row: Row) -> str:
    """Say for which pairs a row's scenario runs."""
    if row.id not in SCENARIOS:
        return ""
    dispatchers = "all" if row.dispatchers == EVERY_DISPATCHER else ", ".join(f"`{each}`" for each in row.dispatchers)
    transports = "all" if row.transports == EVERY_TRANSPORT else ", ".join(f"`{each}`" for each in row.transports)
    both = "all" if dispatchers == transports == "all" else f"{dispatchers} over {transports}"
    return "; ".join((both, *(f"not {pattern(each)}: {reason}" for each, reason in row.unless.items())))


def pattern(pair: str) -> str:
    dispatcher, _, transport = pair.partition("/")
    named = [f"`{each}`" for each in (dispatcher, transport) if each not in {"", "*"}]
    return " over ".join(named) or "all"


def state(row: Row) -> str:
    """Say how a row stands, and why."""
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
    words = Counter(row.state(row.id in SCENARIOS).replace("not ours", "not promised") for row in ROWS.values())
    summary = f"Of {len(ROWS)} faults: {', '.join(f'{words[word]} {word}' for word in ORDER if words[word])}."
    proofs = sum(bool(row.proof) for row in ROWS.values())
    lines = [NOTICE, "", FAULTS_HEAD.format(summary=summary, proofs=proofs, pairs=len(EVERY_DISPATCHER) * len(EVERY_TRANSPORT))]
    for family, title in FAMILIES.items():
        lines += [
            f"## {title}",
            "",
            "| | fault | what happens | how it stands | tried under | tests | `socketserver` |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in ROWS.values():
            if row.family == family:
                cells = (row.id, row.fault, row.expected or "nothing is promised", state(row), where(row), tests_of(row), theirs(row))
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
            word = row.state(row.id in SCENARIOS).replace("not ours", "not promised")
            by_state.setdefault(word, []).append(f"[{row.id}](../reference/faults.md#{FAMILIES[row.family].lower().replace(' ', '-')})")
        told = [f"**{word[0].upper()}{word[1:]}**: {', '.join(by_state[word])}." for word in ORDER if word in by_state]
        lines += [f"## {name}. {promise['title']}", "", textwrap.fill(promise["text"], 140), "", *told, ""]
    lines += ["## See also", "", "[Faults](../reference/faults.md) · [States](states.md) · [Decisions about serving](decisions-serving.md)"]
    return "\n".join(lines) + "\n"


OVER = {name for name, subjects in WHERE.items() if any(each.endswith("/tcp") for each in subjects)}
"""What is measured of a dispatcher over a transport."""


def cell(value: object) -> str:
    return "not seen" if value is None else f"{value:,}"


def endurance() -> str:
    lines = [NOTICE.replace("tests/faults/*.toml", RESULTS.name).replace("those and run it", "nothing here"), "", ENDURANCE_HEAD]
    for name, measured in known().items():
        columns = [column for column in next(iter(measured.values())) if column not in NOT_SHOWN]
        lines += [f"## {name.capitalize()}", "", textwrap.fill(inspect.getdoc(MEASURES[name]) or "", 140), ""]
        lines += ["At most: " + ", ".join(f"{what} {most:,}" for what, most in HOLD[name].items()) + ".", ""]
        lines += [f"| | {' | '.join(columns)} | | measured |", "|---" * (len(columns) + 3) + "|"]
        for subject in sorted(measured, key=lambda each, order=WHERE[name]: order.index(each) if each in order else len(order)):
            figure = measured[subject]
            verdict = "**missed**" if missed(name, figure) else "holds"
            when = f"{figure['date']}, at {figure['commit']}" if "date" in figure else "earlier"
            over = subject.replace("/", " over ") if name in OVER else subject
            lines.append(f"| {' | '.join((over, *(cell(figure[column]) for column in columns), verdict, when))} |")
        lines.append("")
    lines += ["## See also", "", "[Faults](../reference/faults.md) · [The contract](contract.md) · [Measurements](measurements.md)"]
    return "\n".join(lines) + "\n"


PAGES = {FAULTS: faults, CONTRACT: contract, ENDURANCE: endurance}

if __name__ == "__main__":
    for page, make in PAGES.items():
        page.write_text(make(), "utf-8")
