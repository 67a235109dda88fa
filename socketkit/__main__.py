"""The program ``socketkit``, which is also ``python -m socketkit``."""

from __future__ import annotations

import os
import sys

from socketkit._system import early_signals, init


def _run(words: list[str]) -> None:
    """Run a program, if nothing is wrong with the options before it; otherwise return, so that the command line tells what is.

    This saves the import of click, which takes longer than everything else that the command does.
    """
    from socketkit._dropin import start  # noqa: PLC0415 - for this command only
    from socketkit.errors import SocketkitError  # noqa: PLC0415 - as above

    chosen: dict[str, str] = {}
    while words and words[0].partition("=")[0] in {"--dispatcher", "--lifecycle"}:
        option, given, value = words.pop(0).partition("=")
        if not given and not words:
            return
        chosen[option] = value if given else words.pop(0)
    is_module = words[:1] == ["-m"] and len(words) > 1
    if not start.can_start() or not words or (words[0].startswith("-") and not is_module):
        return
    dispatcher, lifecycle = chosen.get("--dispatcher"), chosen.get("--lifecycle")
    try:
        can_run = start.check(dispatcher, lifecycle)
    except SocketkitError:
        return
    if can_run:
        start.start(words, dispatcher, lifecycle)


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
