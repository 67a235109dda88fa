"""The plugin keeps the promises of a dispatcher, as the kit for authors of plugins checks them, on a cluster of two workers."""

from __future__ import annotations

import logging

import pytest
from socketkit_dask import Dask

from socketkit.testing.conformance import DispatcherConformance


@pytest.fixture(autouse=True)
def quiet():
    """Show nobody what the checks provoke on purpose."""
    handler = logging.NullHandler()
    logging.getLogger("socketkit").addHandler(handler)
    yield
    logging.getLogger("socketkit").removeHandler(handler)


class TestDask(DispatcherConformance):
    patience = 20.0

    @pytest.fixture(autouse=True)
    def _cluster(self, cluster):
        self.scheduler = cluster.address

    def make(self):
        return Dask(self.scheduler)
