"""The plugin keeps the promises of a layer and of an observer, as the kit for authors of plugins checks them."""

from __future__ import annotations

from socketkit_prometheus import Metrics, Prometheus

from socketkit.testing.conformance import LayerConformance, ObserverConformance


class TestPrometheus(LayerConformance):
    def make(self):
        return Prometheus()

    def client(self, sock):
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return sock


class TestMetrics(ObserverConformance):
    def make(self):
        return Metrics()
