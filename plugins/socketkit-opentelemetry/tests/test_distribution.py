"""What the distribution says of itself is true: its example runs, and its types are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from otel_helpers import LATE

HERE = Path(__file__).resolve().parents[1]
README = (HERE / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

QUIET = {"OTEL_BSP_SCHEDULE_DELAY": "60000"}


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_readme_run(program, collector, number):
    process = program(EXAMPLES[number], OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, **QUIET)
    _, errors = process.communicate(timeout=LATE)
    assert process.returncode == 0, errors


def test_types_are_complete(tmp_path):
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(HERE / "src")]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert checked.returncode == 0, checked.stdout
