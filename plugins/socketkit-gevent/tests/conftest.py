"""Every test leaves the process as it found it."""


def pytest_configure(config):
    """Load the plugin, which only the conftest.py of a root may name in `pytest_plugins`, unless another folder's tests have loaded it."""
    config.pluginmanager.import_plugin("socketkit.testing.pytest_plugin")
