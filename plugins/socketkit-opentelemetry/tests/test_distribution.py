"""What the distribution says of itself is true: its example runs, and its types are complete."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from otel_helpers import sending_to

from socketkit.testing.programs import python, run

HERE = Path(__file__).resolve().parents[1]
README = (HERE / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_readme_run(collector, number):
    python(EXAMPLES[number], env=sending_to(collector.endpoint, OTEL_BSP_SCHEDULE_DELAY="60000"))


def test_types_are_complete(tmp_path):
    run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(HERE / "src"), guard=55)
