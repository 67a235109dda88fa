"""``socketkit run``: runs an unmodified program with the drop-in instead of `socketserver`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from socketkit._dropin.install import environment
from socketkit.composition import capabilities, config
from socketkit.transports.tcp import TCP


class _Run(click.Command):
    """Parses its own options up to the program; everything after that belongs to the program."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = 0
        while own < len(args) and args[own].startswith("--") and args[own] != "--":
            own += 1 if "=" in args[own] or args[own] in ctx.help_option_names else 2
        program = args[own:]
        if program and (program[0] == "-" or program[0].startswith("-m") or not program[0].startswith("-")):
            args = [*args[:own], "--", *program]
        return super().parse_args(ctx, args)


@click.command(
    cls=_Run,
    short_help="Run a program that was written for socketserver.",
    options_metavar="[--dispatcher SPEC] [--lifecycle SPEC]",
    epilog="\b\nsocketkit run -m http.server 8000\nsocketkit run --dispatcher fork:8 manage.py runserver",
)
@click.option("--dispatcher", metavar="SPEC", help="Run every server of the program under this one, as in thread or fork:8.")
@click.option("--lifecycle", metavar="SPEC", help="Start and stop every server of the program in this way, as in graceful:drain=10s.")
@click.argument("program", metavar="(-m MODULE | SCRIPT) [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(dispatcher: str | None, lifecycle: str | None, program: Sequence[str]) -> None:
    """Run a Python program as python would, with socketkit in the place of the standard library's socketserver.

    The same goes for the Python processes that the program starts, unless they ignore the environment (python -E, -I, -S).
    Without --dispatcher each server keeps the strategy that its class is named for.
    """
    if program[0] == "-m" and len(program) == 1:
        raise click.UsageError("-m needs the name of a MODULE.")
    strategy = config.dispatcher(dispatcher) if dispatcher is not None else None
    capabilities.check(
        [TCP("127.0.0.1", 0)],  # a stand-in for whatever the program listens on
        strategy,
        config.lifecycle(lifecycle) if lifecycle is not None else None,
    )
    if hasattr(strategy, "interpreters"):
        raise click.UsageError(f"{dispatcher} cannot run the classes of socketserver, which other interpreters cannot copy; use prefork.")
    if sys.flags.no_site or not sys.executable:
        raise click.UsageError("run needs the site module to reach the program; start Python without -S.")
    command = [sys.executable, *_interpreter_options(), *program]
    _become(command, environment(len(program), dispatcher, lifecycle))


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
