"""Checks that a part keeps the promises of its seam, for the authors of plugins."""

from socketkit.testing.conformance.commands import Obeys
from socketkit.testing.conformance.dispatchers import DispatcherConformance, check_dispatcher
from socketkit.testing.conformance.layers import LayerConformance, check_layer
from socketkit.testing.conformance.lifecycles import LifecycleConformance, check_lifecycle
from socketkit.testing.conformance.observers import ObserverConformance, check_observers
from socketkit.testing.conformance.promises import Conformance, Finding, NotConformingError, Report
from socketkit.testing.conformance.transports import TransportConformance, check_transport

__all__ = ["Conformance", "Finding", "NotConformingError", "Obeys", "Report"]
__all__ += ["DispatcherConformance", "LayerConformance", "LifecycleConformance", "ObserverConformance", "TransportConformance"]
__all__ += ["check_dispatcher", "check_layer", "check_lifecycle", "check_observers", "check_transport"]
