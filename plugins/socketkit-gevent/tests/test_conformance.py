"""The plugin keeps the promises of a dispatcher, as the kit for authors of plugins checks them."""

from __future__ import annotations

import logging

import pytest
from socketkit_gevent import Gevent

from socketkit.testing.conformance import DispatcherConformance


@pytest.fixture(autouse=True)
def quiet():
    """Show nobody what the checks provoke on purpose."""
    handler = logging.NullHandler()
    logging.getLogger("socketkit").addHandler(handler)
    yield
    logging.getLogger("socketkit").removeHandler(handler)


class TestGevent(DispatcherConformance):
    def make(self):
        return Gevent()


class TestFewGreenlets(TestGevent):
    def make(self):
        return Gevent(2)
