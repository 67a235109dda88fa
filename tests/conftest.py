"""What holds for every test: it leaves the process as it found it."""

import pytest

from leaks import Account


@pytest.fixture(autouse=True)
def nothing_left_behind(request):
    """Fail a test that leaves something behind; `pytest.mark.leaves("threads", reason="...")` forgives what is named."""
    marker = request.node.get_closest_marker("leaves")
    if marker is not None and not marker.kwargs.get("reason"):
        pytest.fail("the mark `leaves` needs a reason")
    before = Account.take()
    yield
    left = before.left_since(frozenset(marker.args if marker else ()))
    before.restore()
    if left:
        pytest.fail("the test left behind:\n    " + "\n    ".join(left), pytrace=False)
