"""``socketkit serve``: serves one handler, or the servers of a configuration file, until a signal stops them."""

from __future__ import annotations

import click

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

DEFAULT_IDLE = "60s"
"""How long a server that inetd has given a listening socket stays without requests."""


class _Serve(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. With ``--inetd``, standard error may be a client: take it first, because the parser reports errors there."""
        if "--inetd" in args:
            from socketkit.cli import _inetd  # noqa: PLC0415 - for this option only

            ctx.obj = _inetd.take()
        return super().parse_args(ctx, args)


@click.command(
    cls=_Serve,
    epilog="\b\nsocketkit serve myapp:Echo --listen tcp://127.0.0.1:9999 --listen unix:///run/echo.sock\nsocketkit serve servers.toml echo dns",
)
@click.argument("what", metavar="(HANDLER | CONFIG.toml)")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--listen", metavar="URL", multiple=True, help="Where to listen, as in tcp://127.0.0.1:9999. May be given more than once.")
@click.option("--dispatcher", metavar="SPEC", help="Where and when the handler runs, as in thread or fork:8.")
@click.option("--lifecycle", metavar="SPEC", help="How serving starts and stops, as in graceful:drain=10s.")
@click.option("--limits", metavar="SPEC", help="What is admitted, and for how long, as in max_connections=100,overflow=shed.")
@click.option("--inetd", is_flag=True, help="Serve standard input, which inetd has made a socket, and exit.")
@click.option(
    "--idle", metavar="TIME", help=f"With --inetd: exit after this time without requests, if it listens. Default: {DEFAULT_IDLE}."
)
@click.pass_obj
def serve(  # noqa: PLR0913, PLR0917 - each is one option of the command
    taken: socket.socket | None,
    what: str,
    names: Sequence[str],
    listen: Sequence[str],
    dispatcher: str | None,
    lifecycle: str | None,
    limits: str | None,
    inetd: bool,
    idle: str | None,
) -> None:
    """Serve HANDLER, given as module:Class, or the servers of CONFIG.toml, all or those NAMEd.

    Modules are also found in the working directory. Once listening, a line for each listener goes to standard error.

    SIGINT and SIGTERM stop gracefully, a second one at once. SIGUSR2 restarts: the same command starts again and takes the sockets over,
    so that no client is refused. SIGHUP reads CONFIG.toml again, and changes nothing unless it is good; with a HANDLER it stops.

    With --inetd, what would go to standard error goes to the system log if standard error is the client's socket, too.

    Exit codes: 0 stopped, 1 failed, 2 bad usage or configuration.
    """
    from socketkit.cli import _serving  # noqa: PLC0415 - it imports the parts of servers, which --help does without

    options = {"listen": listen, "dispatcher": dispatcher, "lifecycle": lifecycle, "limits": limits}
    given = {option: value for option, value in options.items() if value not in {None, ()}}
    _serving.serve(taken, what, names, given, idle, DEFAULT_IDLE, inetd=inetd)
