"""The dispatcher of the plugin socketkit-gevent, for tests that hold under every dispatcher."""

import pytest

GREEN = pytest.param("gevent", marks=pytest.mark.plugin("socketkit-gevent"))
"""The parameter `"gevent"`, whose tests are skipped where the plugin is not installed."""
