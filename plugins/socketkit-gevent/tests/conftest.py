"""The plugin is tested from its sources, and every test leaves the process as it found it."""

import sys
from pathlib import Path

import pytest

from leaks import Account

SOURCES = Path(__file__).parents[1] / "src"
sys.path.insert(0, str(SOURCES))


@pytest.fixture(autouse=True)
def nothing_left_behind():
    before = Account.take()
    yield
    left = before.left_since(frozenset())
    before.restore()
    if left:
        pytest.fail("the test left behind:\n    " + "\n    ".join(left), pytrace=False)
