"""The plugin keeps the promises of a dispatcher, as the kit for authors of plugins checks them, on a cluster of two workers."""

from __future__ import annotations

import pytest
from socketkit_dask import Dask

from socketkit.testing.conformance import DispatcherConformance


class TestDask(DispatcherConformance):
    patience = 20.0

    @pytest.fixture(autouse=True)
    def _cluster(self, cluster):
        self.scheduler = cluster.address

    def make(self):
        return Dask(self.scheduler)
