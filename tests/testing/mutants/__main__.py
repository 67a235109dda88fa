"""Checks the mutants of one seam, ``python -m testing.mutants SEAM``, and prints a line of JSON for each: check, promise, result, reason."""

import faulthandler
import importlib
import json
import logging
import os
import sys

from socketkit.testing import conformance
from socketkit.testing.conformance.promises import find

KINDS = {
    "transports": conformance.TransportConformance,
    "layers": conformance.LayerConformance,
    "dispatchers": conformance.DispatcherConformance,
    "lifecycles": conformance.LifecycleConformance,
    "observers": conformance.ObserverConformance,
}


def main(seam, *only):
    faulthandler.dump_traceback_later(120, exit=True)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for what mutants make threads say; standard output is for the findings
    logging.getLogger("socketkit").addHandler(logging.NullHandler())
    module = importlib.import_module(f"testing.mutants.{seam}")
    for name, (make, _) in module.MUTANTS.items():
        if only and name not in only:
            continue
        members = {"make": lambda _self, make=make: make(), "client": getattr(module, "client", None), "patience": 1.0}
        finding = find(getattr(type("Checks", (KINDS[seam],), members)(), name.partition(" ")[0]))
        print(json.dumps([name, finding.promise, finding.result, finding.reason]), flush=True)
    sys.stdout.flush()
    os._exit(0)  # mutants leave threads behind


if __name__ == "__main__":
    main(*sys.argv[1:])
