"""The plugin keeps the promises of a dispatcher, as the kit for authors of plugins checks them."""

from __future__ import annotations

from socketkit_gevent import Gevent

from socketkit.testing.conformance import DispatcherConformance


class TestGevent(DispatcherConformance):
    def make(self):
        return Gevent()


class TestFewGreenlets(TestGevent):
    def make(self):
        return Gevent(2)
