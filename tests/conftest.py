"""What holds for every test: it leaves the process as it found it; and what takes long runs first, or only if it is asked for."""

import shutil
from importlib.metadata import distributions

import pytest

from socketkit._system import logs


@pytest.fixture(autouse=True)
def own_log():
    """Count repeated log lines anew in each test."""
    logs.finish()


def pytest_collection_modifyitems(config, items):
    """Skip what is marked `soak` unless the -m option speaks of it, and what is marked with a plugin or a client that is not installed.

    Those that may take longest run first: at the end, xdist has only short tests left to keep all workers busy.
    """
    items.sort(key=time_limit, reverse=True)
    installed = {distribution.name for distribution in distributions()}
    for item in items:
        if item.get_closest_marker("soak") and "soak" not in config.getoption("-m"):
            item.add_marker(pytest.mark.skip(reason="takes long: run it with -m soak"))
        for plugin in {name for marker in item.iter_markers("plugin") for name in marker.args} - installed:
            item.add_marker(pytest.mark.skip(reason=f"needs {plugin}: run it with nox -s plugins"))
        for program in {name for marker in item.iter_markers("clients") for name in marker.args if shutil.which(name) is None}:
            item.add_marker(pytest.mark.skip(reason=f"{program} is not installed"))


def time_limit(item):
    """Return the seconds of the item's own `timeout` mark; 0 without one."""
    marker = item.get_closest_marker("timeout")
    return marker.args[0] if marker else 0
