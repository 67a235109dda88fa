"""What holds for every test: it leaves the process as it found it; and what takes long is run only if it is asked for."""

import pytest

from socketkit._system import logs

pytest_plugins = ["socketkit.testing.pytest_plugin"]


@pytest.fixture(autouse=True)
def own_log():
    """Count repeated log lines anew in each test."""
    logs.finish()


def pytest_collection_modifyitems(config, items):
    """Skip what is marked `soak` unless the -m option speaks of it."""
    if "soak" not in config.getoption("-m"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="takes long: run it with -m soak"))
