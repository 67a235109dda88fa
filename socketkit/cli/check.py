"""``socketkit check``: reports every fault of a configuration file, without binding anything."""

from __future__ import annotations

from typing import Any

import click

from socketkit.cli._servers import compose, import_from_here, limits, strategy
from socketkit.composition import config

FORK_TRAITS = ("forks_workers", "forks_requests")


@click.command(epilog="\b\nsocketkit check servers.toml")
@click.argument("path", metavar="CONFIG.toml")
def check(path: str) -> None:
    """Report every error in CONFIG.toml, a line for each with its key; if there is none, what it would serve.

    A warning goes to standard error. Handlers are imported, also from the working directory; nothing is bound.

    Exit codes: 0 no errors, 2 errors.
    """
    import_from_here()
    compositions = {f"servers.{name}": parts for name, parts in config.read(path).items()}
    servers = compose(compositions)
    for key, server in servers.items():
        click.echo(f"{key}: {', '.join(server.urls)} {strategy(server)}{limits(server)}")
        if len(servers) > 1 and _forks(server.dispatcher):
            click.echo(f"Warning: {key} forks while the threads of the other servers run; serve it alone, by its NAME", err=True)


def _forks(dispatcher: Any) -> bool:
    """Return whether the dispatcher, or one inside it, forks the serving process."""
    return any(getattr(each, trait, False) for each in (dispatcher, getattr(dispatcher, "inner", None)) for trait in FORK_TRAITS)
