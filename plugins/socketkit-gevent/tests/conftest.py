"""Tests the plugin from its sources. Every test leaves the process as it found it."""

import sys
from pathlib import Path

from socketkit.testing.pytest_plugin import nothing_left_behind  # noqa: F401 - importing a fixture activates it

SOURCES = Path(__file__).parents[1] / "src"
sys.path.insert(0, str(SOURCES))
