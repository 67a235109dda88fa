"""The program ``socketkit``, which is also ``python -m socketkit``."""

from __future__ import annotations

import os
import sys

from socketkit._system import early_signals, init


def main() -> None:
    """Run the command. Before its modules are imported, which takes a while, decide what signals do meanwhile."""
    command = sys.argv[1:2]
    if os.getpid() == 1 and command in (["serve"], ["run"]):
        init.run_in_child()
    if command == ["serve"]:
        early_signals.hold("SIGHUP", "SIGUSR2")

    from socketkit.cli import main  # noqa: PLC0415 - see above

    main()


if __name__ == "__main__":
    main()
