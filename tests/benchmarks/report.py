"""Writes the pages about measurements and their figures, from the JSON file of a run."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from .clients import CPU, P99, PEAK
from .figures import Outcome, limits, median, outcomes, spread

PAGE = "measurements.md"
ROWS_PAGE = "measurements-rows.md"
FIGURES = "measurements"

_LEFT, _WIDTH, _RIGHT, _BAR, _STEP = 190, 400, 130, 18, 26
_MET = {True: "yes", False: "**no**", None: "not known"}

_HEAD = """\
# Measurements

How fast socketkit is compared with alternatives, on one machine and at one time. Rely on the ratios: both sides of each were measured in
the same run, by the same client, with the same handler. Every side ran once in each round, and the order was reversed every second round.
The figures are medians of the rounds. [The rows](measurements-rows.md) show every side of each. The benchmark writes both pages:

```text
python -m tests.benchmarks setup
python -m tests.benchmarks --json tests/benchmarks/recorded.json --report docs/explanation
```
"""

_ROWS_HEAD = """\
# Measured rows

Every row of the [measurements](measurements.md), which tell how to read them.
"""

_NOTES = """\
## How to read it

- Each server runs in its own process, on the loopback interface, with a warm-up before each round. Client and server share the
  machine. In the figures, a bar shows the median, and the thin line extends from the lowest to the highest round.
- *Noise* is the highest round minus the lowest, as a share of the median, for the noisiest side of the row.
- *At most* means that the client was at its limit with that peer, which may be faster than measured. Such a goal can be missed, but not met.
- *CPU µs/reply* is the processor time of the server and its processes for each reply. It tells more than replies/s where the client is
  the limit, and where a server with more threads or processes is faster because it uses more than one processor. Replies/s tells more
  where a server waits, because it uses no processor then.
- *Peak memory* is the most resident memory that the server's processes had, that is with all connections open.
- *Busy* is how much of one processor the socketkit server used. Far below 100 %, the server was not the bottleneck.
- *The client is the limit* with the sides that are named: they may be faster than shown.
- The standard library's classes use an accept queue of 1024 connections, as socketkit does, instead of 5, which would measure lost packets.
- With TLS all sides have the same certificate (EC, P-256). nginx has one worker process, and shows what is possible; no goal is about it.
- gevent, asyncio and cheroot do the same work in their own style. The bare loops and the server in C make only the necessary system
  calls; *bare loop + handler* also constructs the handler for each datagram, as every server has to.
"""


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write the pages and a figure for each row into the folder, and remove the figures of former rows."""
    figures = folder / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    for old in figures.glob("*.svg"):
        old.unlink()
    for row in results["rows"]:
        (figures / f"{row['name']}.svg").write_text(figure(row))
    (folder / PAGE).write_text(page(results))
    (folder / ROWS_PAGE).write_text(rows_page(results))


def rows_page(results: Mapping[str, Any]) -> str:
    """Return the page that shows every side of each row, in Markdown."""
    return "\n".join([_ROWS_HEAD, *map(_section, results["rows"])])


def page(results: Mapping[str, Any]) -> str:
    """Return the page with the goals, in Markdown."""
    rows = results["rows"]
    about = "; ".join(f"{name} {value}" if name != "processor" else value for name, value in results["machine"].items())
    table = ["| work | goal | measured | met |", "|---|---|---|---|"]
    for row in rows:
        work = f"[{row['work']}]({ROWS_PAGE}#{row['name']})"
        table += [f"| {work} | {outcome.goal} | {_shown(outcome)} | {_MET[outcome.met]} |" for outcome in outcomes(row)]
    note = [f"{results['note']}\n"] if results.get("note") else []
    parts = [_HEAD, f"Measured on: {about}.\n", *note, "## Goals\n", "\n".join(table) + "\n", _NOTES]
    return "\n".join(parts)


def verdict(outcome: Outcome) -> str:
    """Return the result of a goal, as a line."""
    return f"{outcome.goal}: {_shown(outcome)}, {'met' if outcome.met else 'not known' if outcome.met is None else 'MISSED'}"


def figure(row: Mapping[str, Any]) -> str:
    """Return the row's sides as horizontal bars, in SVG."""
    sides = {side: rounds[row["metric"]] for side, rounds in row["sides"].items()}
    most = max((max(values) for values in sides.values()), default=0.0) or 1.0
    height = _STEP * (len(sides) + 1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + _RIGHT} {height}" font-family="sans-serif" font-size="13">',
        "  <style>.ours { fill: #0969da } .theirs { fill: #afb8c1 } .range { stroke: #24292f } text { fill: #24292f }</style>",
        f'  <rect width="{_LEFT + _WIDTH + _RIGHT}" height="{height}" fill="#ffffff"/>',
        f'  <text x="{_LEFT}" y="17" fill-opacity="0.7">{escape(row["metric"])}</text>',
    ]
    for number, (side, values) in enumerate(sides.items(), 1):
        top, middle = number * _STEP, number * _STEP + _BAR // 2
        low, mid, high = (_LEFT + round(value / most * _WIDTH) for value in (min(values), median(values), max(values)))
        kind = "ours" if side == row["subject"] else "theirs"
        lines += [
            f'  <text x="{_LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(side)}</text>',
            f'  <rect class="{kind}" x="{_LEFT}" y="{top}" width="{mid - _LEFT}" height="{_BAR}"/>',
            f'  <path class="range" d="M{low} {middle}H{high}"/>',
            f'  <text x="{max(mid, high) + 8}" y="{top + 13}">{median(values):,.{_digits(median(values))}f}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _section(row: Mapping[str, Any]) -> str:
    facts = [f"`{row['client']}`" if " -" in row["client"] else row["client"], f"{row['rounds']} rounds of {row['seconds']:g} s"]
    ours = row["sides"].get(row["subject"], {})
    if row["sides"]:
        facts.append(f"noise {max(spread(rounds[row['metric']]) for rounds in row['sides'].values()):.0%}")
    facts += [f"server busy {median(ours['server busy']):.0%}"] if "server busy" in ours else []
    facts += [_figures(row, metric) for metric in (CPU, *((P99, PEAK) if row["name"].startswith("crowd") else ()))]
    limited = [side for side, rounds in row["sides"].items() if limits(rounds)]
    facts += [f"the client is the limit with {', '.join(limited)}"] if limited else []
    facts += [f"{side} skipped ({reason})" for side, reason in row["skipped"].items()]
    text = f"{row['work']}; {'; '.join(filter(None, facts))}; {row['when']}"
    return f"## {row['name']}\n{text[0].upper()}{text[1:]}. ![{row['name']}]({FIGURES}/{row['name']}.svg)\n"


def _figures(row: Mapping[str, Any], metric: str) -> str:
    """Return this figure of every side that has it, as text."""
    found = {side: median(rounds[metric]) for side, rounds in row["sides"].items() if metric in rounds}
    figures = ", ".join(f"{side} {value:,.{_digits(value)}f}" for side, value in found.items())
    return f"{metric}: {figures}" if found else ""


def _shown(outcome: Outcome) -> str:
    """Return the measured figure as text: a ratio with two decimals, any other figure with as many as it needs."""
    if outcome.measured is None:
        return "-"
    if outcome.goal.than:
        return f"{'at most ' if outcome.limited else ''}{outcome.measured:.2f} x"
    return f"{outcome.measured:,.{_digits(outcome.measured)}f}"


def _digits(value: float) -> int:
    """Return how many decimals to show."""
    return 0 if value == 0 or value >= 100 else 1 if value >= 1 else 3
