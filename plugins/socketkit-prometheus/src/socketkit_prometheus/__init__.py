"""Prometheus metrics of socketkit servers: a layer that answers scrapes, and an observer that counts in all processes of a server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from socketkit.hookspecs import hookimpl
from socketkit.seams import AnyLayer, Seconds, ShakesHands
from socketkit_prometheus._metrics import BUCKETS, Metrics

if TYPE_CHECKING:
    from socketkit import Server

__all__ = ["BUCKETS", "Metrics", "Prometheus"]

_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")


def _is_path(_recipe: object, field: Any, value: Any) -> None:
    if not isinstance(value, str) or not _PATH.fullmatch(value):
        raise ValueError(f"{field.name} must be a path such as /metrics, of letters, digits and ._~/-, not {value!r}")


def _are_bounds(_recipe: object, field: Any, value: Any) -> None:
    fits = isinstance(value, tuple) and value and all(isinstance(each, int | float) for each in value)
    if not fits or value[0] <= 0 or value[-1] == float("inf") or any(not low < high for low, high in pairwise(value)):
        raise ValueError(f"{field.name} must be a list of seconds, each more than the one before, such as [0.001, 0.1, 10], not {value!r}")


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@attrs.frozen
class Prometheus:
    """Answers scrapes by Prometheus on its listener, over HTTP, instead of passing connections to the server's handler.

    `metrics` observes the server. A server that is composed by name has it as an observer; give it to any other one, as
    ``observers=[recipe.metrics]``.
    """

    path: str = attrs.field(default="/metrics", validator=_is_path)
    """Path that the metrics are at."""
    buckets: tuple[Seconds, ...] = attrs.field(default=BUCKETS, converter=_frozen, kw_only=True, validator=_are_bounds)
    """Upper bounds of the buckets of all histograms, in seconds, ascending."""
    metrics: Metrics = attrs.field(init=False, eq=False, repr=False)
    """Counts what the server does, and tells it to this layer."""

    answers: ClassVar[bool] = True

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "metrics", Metrics(self.buckets))  # not a default, which is made before the buckets are checked

    def start(self) -> ShakesHands:
        """Return the live part."""
        from socketkit_prometheus._scrape import Scrapes  # noqa: PLC0415 - importing prometheus_client takes long

        return Scrapes(self.metrics, self.path)


@hookimpl
def socketkit_layers() -> Mapping[str, type[AnyLayer]]:
    """Offer the layer."""
    return {"prometheus": Prometheus}


@hookimpl
def socketkit_observers(server: Server) -> Iterable[object]:
    """Observe a server that has the layer on one of its transports."""
    return [layer.metrics for layer in _layers(server) if isinstance(layer, Prometheus)]


def _layers(server: Server) -> Iterator[object]:
    for transport in server.transports:
        yield from getattr(transport, "layers", ())


if TYPE_CHECKING:
    _recipe: AnyLayer = Prometheus()
