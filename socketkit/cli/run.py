"""``socketkit run``: runs an unmodified program with the drop-in instead of `socketserver`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from socketkit._dropin import start


class _Run(click.Command):
    """Parses its own options up to the program; everything after that belongs to the program."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = 0
        while own < len(args) and args[own].startswith("--") and args[own] != "--":
            own += 1 if "=" in args[own] or args[own] in {*ctx.help_option_names, "--stats"} else 2
        program = args[own:]
        if program and (program[0] == "-" or program[0].startswith("-m") or not program[0].startswith("-")):
            args = [*args[:own], "--", *program]
        return super().parse_args(ctx, args)


@click.command(
    cls=_Run,
    options_metavar="[--dispatcher SPEC] [--lifecycle SPEC] [--limits SPEC] [--stats]",
    epilog="\b\nsocketkit run -m http.server 8000\nsocketkit run --dispatcher fork:8 manage.py runserver",
)
@click.option("--dispatcher", metavar="SPEC", help="Run every server of the program under this one, as in thread or fork:8.")
@click.option("--lifecycle", metavar="SPEC", help="Start and stop every server of the program in this way, as in graceful:drain=10s.")
@click.option("--limits", metavar="SPEC", help="What every server of the program admits, and for how long, as in request=1m,rate=50.")
@click.option("--stats", is_flag=True, help="Say at the end of the program how the requests of each server have ended.")
@click.argument("program", metavar="(-m MODULE | SCRIPT) [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(dispatcher: str | None, lifecycle: str | None, limits: str | None, program: Sequence[str], *, stats: bool) -> None:
    """Run a Python program as python would, with socketkit in the place of the standard library's socketserver.

    The same goes for the Python processes that the program starts, unless they ignore the environment (python -E, -I, -S).
    Without --dispatcher each server keeps the strategy that its class is named for.
    """
    if program[0] == "-m" and len(program) == 1:
        raise click.UsageError("-m needs the name of a MODULE.")
    if not start.check(dispatcher, lifecycle, limits):
        raise click.UsageError(f"{dispatcher} cannot run the classes of socketserver, which other interpreters cannot copy; use prefork.")
    if not start.can_start():
        raise click.UsageError("run needs the site module to reach the program; start Python without -S.")
    start.start(program, dispatcher, lifecycle, limits, "1" if stats else None)
