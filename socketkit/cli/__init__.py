"""The command ``socketkit``.

It reports socketkit's errors as one sentence on standard error (one line for each fault of a configuration) and an exit code: 2 for
bad usage or configuration, 1 for failures at run time, such as a port in use.
"""

from __future__ import annotations

from importlib import import_module

import click

from socketkit import __version__
from socketkit.errors import BootError, ListenError, PrivilegeError, SocketkitError

__all__ = ("main",)


COMMANDS = {
    "serve": "Serve a handler, or the servers of a configuration file.",
    "run": "Run a program that was written for socketserver.",
    "check": "Report every error in a configuration file.",
    "plugins": "List what is installed, and its options.",
    "demo": "Show one handler under each installed dispatcher.",
}
"""What each command does, in a line. Each is in the module of its name, which is imported when the command is used."""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the same in every context
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> None:
        try:
            super().invoke(ctx)
        except SocketkitError as error:
            for line in str(error).splitlines():
                click.echo(f"Error: {line}", err=True)
            ctx.exit(1 if isinstance(error, ListenError | BootError | PrivilegeError) else 2)
        except KeyboardInterrupt:  # under a lifecycle that does not handle signals
            ctx.exit(130)


_EXAMPLES = """\b
socketkit demo
socketkit serve myapp:Echo --listen tcp://127.0.0.1:9999 --dispatcher thread
socketkit run --dispatcher fork -m http.server 8000
"""


@click.group(cls=_Group, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s", prog_name="socketkit")
def main() -> None:
    """Serve sockets with ordinary blocking handlers, under the concurrency that one word names.

    SOCKETKIT_DISABLED_PLUGINS=NAME,NAME in the environment keeps plugins from being loaded.
    """
