"""The command ``socketkit``.

It reports socketkit's errors as one sentence on standard error (one line for each fault of a configuration) and an exit code: 2 for
bad usage or configuration, 1 for failures at run time, such as a port in use.
"""

from __future__ import annotations

import click

from socketkit import __version__
from socketkit.cli.check import check
from socketkit.cli.demo import demo
from socketkit.cli.plugins import plugins
from socketkit.cli.run import run
from socketkit.cli.serve import serve
from socketkit.errors import BootError, ListenError, PrivilegeError, SocketkitError

__all__ = ("main",)


class _Group(click.Group):
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


for _command in (serve, run, check, plugins, demo):
    main.add_command(_command)
