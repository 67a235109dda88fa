"""Run scenarios in this process, one after the other, and say how each went: ``python -m faults.run LIBRARY DISPATCHER TRANSPORT ROW...``.

Each row's line on standard output is a JSON object: {"begin": row}, then {"row": row, "failure": null or the text of its failure}. A
scenario that hangs ends the process, with the stacks of its threads on standard error.
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

from faults.lab import Lab
from faults.scenarios import SCENARIOS
from socketkit.testing import Account

GUARD = 25.0
"""Seconds that one row gets; `OF_OTHERS` where it is the standard library's turn, and to hang is what it is expected to do."""

OF_OTHERS = 4.0


def main(subject: str, dispatcher: str, transport: str, *rows: str) -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what scenarios print does not belong between the lines
    soak = bool(os.environ.get("FAULTS_SOAK"))
    guard = 3600 if soak else GUARD if subject == "socketkit" else OF_OTHERS
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for row in rows:
        out.write(json.dumps({"begin": row}) + "\n")
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
                except BaseException:  # noqa: BLE001 - whatever a scenario raises is its failure
                    log = lab.log_file.read_text(errors="replace")[-4000:]
                    failure = f"{scenario.__name__}\n{traceback.format_exc()}\n--- log\n{log}"
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            before.restore()
            if failure:
                break
        faulthandler.cancel_dump_traceback_later()
        out.write(json.dumps({"row": row, "failure": failure}) + "\n")
    out.flush()
    os._exit(0)  # whatever threads a failed scenario has left


if __name__ == "__main__":
    main(*sys.argv[1:])
