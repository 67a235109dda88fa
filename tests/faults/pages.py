"""The pages that are made from the catalogue and the contract: ``PYTHONPATH=.:tests python -m faults.pages`` writes them."""

from __future__ import annotations

import textwrap
import tomllib
from collections import Counter
from pathlib import Path

from faults.catalogue import EVERY_DISPATCHER, EVERY_TRANSPORT, FAMILIES, ROWS, Row
from faults.scenarios import SCENARIOS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FAULTS = ROOT / "docs/reference/faults.md"
CONTRACT = ROOT / "docs/explanation/contract.md"
PROMISES = tomllib.loads((HERE / "contract.toml").read_text("utf-8"))

ORDER = ("held", "held in part", "not held", "not built", "not promised")

NOTICE = "<!-- Made from tests/faults/*.toml by faults.pages: change those and run it. -->"

FAULTS_HEAD = """# Faults

What can go wrong around a server, what socketkit does then, and what the standard library's `socketserver` does. Where it says *held*,
tests hold it; many run under every dispatcher and every transport. Where it does not, something is missing, and the page says what.

{summary}

## How it is tested

- A scenario runs for each dispatcher and transport named; *all* is {pairs} pairs. The rest are tests of their own.
- Of the faults that `socketserver` fails, {proofs} run with its classes as well, and have to fail there. That shows that the test sees
  the fault.
- Each scenario is followed by an account of descriptors, threads, children and signal handlers: nothing may be left behind.

The promises behind these rows are in [the contract](../explanation/contract.md).
"""

CONTRACT_HEAD = """# The contract

What socketkit promises about reliability. Each promise stands with the [faults](../reference/faults.md) that would break it: those that
tests show it to withstand are *held*, and all others are gaps.
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
    """Say how a row stands, and what is missing."""
    word = row.state(row.id in SCENARIOS)
    gaps = [row.missing] if row.missing else []
    gaps += dict.fromkeys(row.fails.values())
    if row.not_ours:
        return f"not promised: {row.not_ours}"
    return f"*{word}*" if word == "held" else f"**{word}**: {'; '.join(gaps)}"


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


PAGES = {FAULTS: faults, CONTRACT: contract}

if __name__ == "__main__":
    for page, make in PAGES.items():
        page.write_text(make(), "utf-8")
