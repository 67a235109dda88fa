"""The program ``socketkit``, which is also ``python -m socketkit``."""

from __future__ import annotations

import os
import sys

from socketkit._system import early_signals, init


def _run(program: list[str]) -> None:
    """Run a program that is given without options, so that there is nothing to check; otherwise return."""
    is_module = program[:1] == ["-m"] and len(program) > 1
    if program and (is_module or not program[0].startswith("-")):
        from socketkit._dropin import start  # noqa: PLC0415 - for this command only

        if start.can_start():
            start.start(program)


def main() -> None:
    """Run the command. Before its modules are imported, which takes a while, decide what signals do meanwhile."""
    command = sys.argv[1:2]
    if os.getpid() == 1 and command in (["serve"], ["run"]):
        init.run_in_child()
    if command == ["serve"]:
        early_signals.hold("SIGHUP", "SIGUSR2")
    if command == ["run"]:
        _run(sys.argv[2:])

    from socketkit.cli import main  # noqa: PLC0415 - see above

    main()


if __name__ == "__main__":
    main()
