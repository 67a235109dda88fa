"""The plugin keeps the promises of an observer, as the kit for authors of plugins checks them."""

from __future__ import annotations

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from socketkit_opentelemetry import OpenTelemetry

from socketkit.testing.conformance import ObserverConformance


class TestWithoutProviders(ObserverConformance):
    def make(self):
        return OpenTelemetry()


class TestWithProviders(ObserverConformance):
    def make(self):
        tracers, meters = TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False)
        return OpenTelemetry(tracer_provider=tracers, meter_provider=meters)
