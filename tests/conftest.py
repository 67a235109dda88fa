"""What holds for every test: it leaves the process as it found it."""

pytest_plugins = ["socketkit.testing.pytest_plugin"]
