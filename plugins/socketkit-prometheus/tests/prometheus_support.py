"""What the metrics of a server say."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

PLUGIN = Path(__file__).parents[1]

LATE = 30
"""Seconds after which an answer counts as missing."""


def metrics_of(text):
    """Return the value of each sample of an exposition, by its name and labels as Prometheus writes them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def read(address, path, accept="*/*"):
    """Return the text that is at a path, over HTTP."""
    request = urllib.request.Request(f"http://{address[0]}:{address[1]}{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=LATE) as answer:
        return answer.read().decode()


def scrape(address):
    """Return the samples that a listener with the layer answers."""
    return metrics_of(read(address, "/metrics"))
