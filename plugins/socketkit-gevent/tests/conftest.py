"""Every test leaves the process as it found it."""

from socketkit.testing.pytest_plugin import nothing_left_behind  # noqa: F401 - importing a fixture activates it
