"""A pytest plugin that fails every test that leaves resources behind.

Enable it in the top-level ``conftest.py`` with ``pytest_plugins = ["socketkit.testing.pytest_plugin"]``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from socketkit.testing.leaks import Account


def pytest_configure(config: pytest.Config) -> None:
    """Register the `leaves` mark."""
    meaning = "may leave these behind: descriptors, threads, children, signals, umask or cwd; say why"
    config.addinivalue_line("markers", f"leaves(*what, reason): {meaning}")


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves resources behind, except those allowed by `pytest.mark.leaves("threads", reason="...")`."""
    marker = request.node.get_closest_marker("leaves")
    if marker is not None and not marker.kwargs.get("reason"):
        pytest.fail("the mark `leaves` needs a reason")
    before = Account.take()
    yield
    left = before.left_since(frozenset(marker.args if marker else ()))
    before.restore()
    if left:
        pytest.fail("the test left behind:\n    " + "\n    ".join(left), pytrace=False)
