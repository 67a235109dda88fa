"""Skips tests whose client program is not installed."""

from __future__ import annotations

import shutil

import pytest


def pytest_runtest_setup(item):
    """Skip a test whose client program is not installed."""
    for mark in item.iter_markers("clients"):
        if shutil.which(mark.args[0]) is None:
            pytest.skip(f"{mark.args[0]} is not installed")
