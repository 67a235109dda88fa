"""Starts a program with the drop-in, for `socketkit run`: in place of the command's own process, through its environment.

The command imports no more than this, if it has no options to check.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

_SHIM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "child")  # noqa: PTH100, PTH118, PTH120 - importing pathlib takes longer


def check(dispatcher: str | None, lifecycle: str | None, limits: str | None = None) -> bool:
    """Check the parts that a program will run under. Return False if the dispatcher copies its server, which a program's cannot be.

    Raises: the error of a part that cannot be made, or cannot work in a program.
    """
    if dispatcher is None and lifecycle is None and limits is None:
        return True
    from socketkit.composition import capabilities, config  # noqa: PLC0415 - many programs run without options
    from socketkit.transports.tcp import TCP  # noqa: PLC0415 - as above

    strategy = config.dispatcher(dispatcher) if dispatcher is not None else None
    capabilities.check(
        [TCP("127.0.0.1", 0)],  # a stand-in for whatever the program listens on
        strategy,
        config.lifecycle(lifecycle) if lifecycle is not None else None,
        limits=config.classic_limits(limits) if limits is not None else None,
    )
    return not hasattr(strategy, "interpreters")


def can_start() -> bool:
    """Return whether this interpreter can reach the program's, which needs the site module."""
    return bool(not sys.flags.no_site and sys.executable)


def start(program: Sequence[str], *chosen: str | None) -> NoReturn:
    """Run the program, given as its arguments for ``python``, in place of this process. chosen: as for `environment`."""
    _become([sys.executable, *_interpreter_options(), *program], environment(len(program), *chosen))


def environment(
    words: int, dispatcher: str | None = None, lifecycle: str | None = None, limits: str | None = None, stats: str | None = None
) -> dict[str, str]:
    """Return the environment for an interpreter whose last `words` arguments are the program and its own arguments.

    dispatcher, lifecycle: text for the parts that every server in the program runs under; None: those its class is named for.
    limits: text for the limits of every server; None: there are none. stats: "1": each server says at the end how its requests ended.
    """
    variables = {key: value for key, value in os.environ.items() if not key.startswith("SOCKETKIT_RUN")}
    if sys.flags.ignore_environment:  # the new interpreter must read PYTHONPATH, so drop all other variables
        variables = {key: value for key, value in variables.items() if not key.startswith("PYTHON")}
    given = variables.get("PYTHONPATH")
    path = [each for each in given.split(os.pathsep) if each != _SHIM] if given else []  # an empty entry is the current folder
    chosen = {"DISPATCHER": dispatcher, "LIFECYCLE": lifecycle, "LIMITS": limits, "STATS": stats}
    return {
        **variables,
        "PYTHONPATH": os.pathsep.join((_SHIM, *path)),
        "SOCKETKIT_RUN": f"{sys.implementation.cache_tag}:{sys.prefix}",
        "SOCKETKIT_RUN_WORDS": str(words),
        **{f"SOCKETKIT_RUN_{name}": text for name, text in chosen.items() if text is not None},
    }


def _interpreter_options() -> list[str]:
    """Return the options that this interpreter was started with, so that ``python -O -m socketkit run X`` runs ``python -O X``.

    Leaves out -E, and the -E in -I, because the drop-in is passed to the interpreter through its environment.
    """
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # noqa: SLF001 - as multiprocessing does
    kept = [word for option in options if option != "-E" for word in (["-s", "-P"] if option == "-I" else [option])]
    buffered = getattr(sys.stdout, "write_through", False)
    return [*kept, *(["-u"] if buffered else []), *(["-i"] if sys.flags.inspect else [])]


def _become(command: list[str], variables: dict[str, str]) -> NoReturn:
    """Run this program in place of the current process, or in a child process where the system cannot do that."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed from the start, as by ``>&-``
            stream.flush()
    if os.name == "posix":
        os.execve(command[0], command, variables)  # noqa: S606 - the user names the program
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the console sends Ctrl-C to both; the program decides
    sys.exit(subprocess.call(command, env=variables))  # noqa: S603 - the same
