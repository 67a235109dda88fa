"""Traces and metrics of socketkit servers, by the API of OpenTelemetry.

Each request is a span that is current in its handler. The program chooses where spans and metrics go: it sets up the providers of
OpenTelemetry's SDK, before or after it makes its servers. Without providers, nothing is recorded.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from typing import Any

from socketkit.hookspecs import hookimpl
from socketkit_opentelemetry._incoming import continue_trace
from socketkit_opentelemetry._observer import OpenTelemetry

__all__ = ("OpenTelemetry", "continue_trace", "socketkit_observers")


@hookimpl
def socketkit_observers(server: Any) -> Iterable[object]:
    """Return the observer that uses the program's providers, unless the environment switches it off for this server.

    Raises: re.error if OTEL_PYTHON_SOCKETKIT_EXCLUDED_URLS is not a list of regular expressions.
    """
    return () if _is_disabled() or _is_excluded(server.urls) else (_observer(),)


@functools.cache
def _observer() -> OpenTelemetry:
    return OpenTelemetry()


def _is_disabled() -> bool:
    """Source: the specification of OpenTelemetry, "General SDK Configuration" and "Boolean value"."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _is_excluded(urls: Iterable[str]) -> bool:
    """As the instrumentations of web frameworks do it: commas separate regular expressions, each of which may match anywhere in a URL."""
    patterns = [each.strip() for each in os.environ.get("OTEL_PYTHON_SOCKETKIT_EXCLUDED_URLS", "").split(",")]
    return any(re.search(pattern, url) for pattern in filter(None, patterns) for url in urls)
