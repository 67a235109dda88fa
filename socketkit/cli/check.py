"""``socketkit check``: reports every fault of a configuration file, without binding anything."""

from __future__ import annotations

import click

from socketkit.cli._servers import compose, import_from_here, limits, strategy
from socketkit.composition import config


@click.command(epilog="\b\nsocketkit check servers.toml")
@click.argument("path", metavar="CONFIG.toml")
def check(path: str) -> None:
    """Tell everything that is wrong with CONFIG.toml, a line for each fault with its key, or what it would serve.

    Handlers are imported, also from the working directory; nothing is bound. Exit codes: 0 sound, 2 anything wrong.
    """
    import_from_here()
    compositions = {f"servers.{name}": parts for name, parts in config.read(path).items()}
    for key, server in compose(compositions).items():
        click.echo(f"{key}: {', '.join(server.urls)} {strategy(server)}{limits(server)}")
