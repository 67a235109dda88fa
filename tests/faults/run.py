"""Run scenarios in this process, one after another, and report each result: ``python -m faults.run LIBRARY DISPATCHER TRANSPORT ROW...``.

For each row, standard output has a JSON object, {"row": row, "failure": null or the text of the failure}. If a scenario hangs, the
process prints the stacks of its threads to standard error and ends.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import tempfile
import traceback
from pathlib import Path

from faults.lab import PATIENCE, Lab
from faults.scenarios import SCENARIOS
from socketkit.testing import Account

GUARD = 5 * PATIENCE
"""The time limit of one scenario in seconds."""


def main(subject: str, dispatcher: str, transport: str, *rows: str) -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keep the output of scenarios out of the JSON lines
    soak = bool(os.environ.get("FAULTS_SOAK"))
    guard = 3600 if soak else GUARD
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for row in rows:
        failure = None
        for scenario in SCENARIOS[row]:
            faulthandler.dump_traceback_later(guard, exit=True, file=sys.__stderr__)
            before = Account.take()
            with tempfile.TemporaryDirectory(prefix="f") as folder:
                lab = Lab(dispatcher, transport, subject, Path(folder), soak)
                try:
                    with lab:
                        scenario(lab)
                    left = before.left_since() if subject == "socketkit" else []
                    assert not left, "left behind:\n" + "\n".join(left)
                except BaseException:  # noqa: BLE001 - any exception of a scenario is its failure
                    log = lab.log_file.read_text(errors="replace")[-4000:]
                    failure = f"{scenario.__name__}\n{traceback.format_exc()}\n--- log\n{log}"
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            before.restore()
            if failure:
                break
        faulthandler.cancel_dump_traceback_later()
        out.write(json.dumps({"row": row, "failure": failure}) + "\n")
    out.flush()
    os._exit(0)  # even if a failed scenario has left threads


if __name__ == "__main__":
    main(*sys.argv[1:])
