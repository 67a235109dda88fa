"""The dispatcher of the plugin socketkit-gevent, for tests that hold under every dispatcher."""

from importlib.metadata import entry_points

import pytest

GREEN = pytest.param(
    "gevent",
    marks=pytest.mark.skipif(not entry_points(group="socketkit", name="gevent"), reason="needs the plugin socketkit-gevent"),
)
"""The parameter `"gevent"`, whose tests are skipped where the plugin is not installed."""
