"""The plugin is tested from its sources, and every test leaves the process as it found it."""

import sys
from pathlib import Path

from socketkit.testing.pytest_plugin import nothing_left_behind  # noqa: F401 - a fixture is used by being here

SOURCES = Path(__file__).parents[1] / "src"
sys.path.insert(0, str(SOURCES))
