"""Plugin hooks: five optional functions, called when a server is composed and never on a request.

A plugin is a module (or any object) that a distribution lists in the entry-point group ``socketkit``. It marks its hooks with
`hookimpl`. They return *recipes*: frozen attrs classes with the shape of a Protocol in `socketkit.seams`:

.. code-block:: python

    # socketkit_trio/__init__.py
    import attrs
    from socketkit.hookspecs import hookimpl

    @attrs.frozen
    class Trio:
        workers: int = 64

        def start(self, work):
            return _Nursery(work, self)

    @hookimpl
    def socketkit_dispatchers():
        return {"trio": Trio}

.. code-block:: toml

    # pyproject.toml
    [project.entry-points.socketkit]
    trio = "socketkit_trio"

Once the plugin is installed, ``dispatcher="trio:8"`` and ``{ use = "trio", workers = 8 }`` mean ``Trio(workers=8)``.

These rules apply to every hook:

* A name consists of letters, digits, ``-`` and ``_``. When two plugins offer the same name, using it raises `ClashError`; built-in
  names are no exception.
* Name the entry point after the part if you can. If the plugin is broken, the error for that part then says why.
* A text value (``trio:8``) fills the recipe's first positional field. A field called ``inner`` takes another part of the same kind
  (``trio:8/pool``). Options are checked against the types of the fields, so import those types at run time, and use attrs
  validators for other checks. ``repr=False`` on a field keeps its value out of error messages.
* A plugin is broken as a whole if it cannot be imported, if it marks a hook with an unknown name or different arguments, or if a
  hook raises or returns anything else. Using one of its parts raises `PluginError`; ``socketkit plugins`` lists it as broken.
* Hooks may be called more than once in a process, and by any thread. They return recipe classes and create no sockets or threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pluggy

from socketkit.seams import AnyLayer, Dispatcher, Lifecycle, Transport

PROJECT = "socketkit"
"""pluggy's name for the project, and the entry-point group in which plugins are found."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's function as the implementation of the hook of the same name."""


@hookspec
def socketkit_transports() -> Mapping[str, type[Transport]]:
    """Offer transports, by the scheme of their URL.

    A recipe is built from ``name://TEXT?option=value``. Its class method ``locate(text) -> dict[str, Any]`` turns TEXT into fields, or
    raises ValueError with one sentence. Without ``locate``, TEXT fills the first positional field.

    Returns: recipe classes by scheme, see `socketkit.seams.Transport`.
    """
    return {}


@hookspec
def socketkit_layers() -> Mapping[str, type[AnyLayer]]:
    """Offer layers, by the name that follows the transport in a URL: ``tcp+name://``.

    Options of a layer are dotted: ``tcp+name://host:port?name.option=value``.

    Returns: recipe classes by name, see `socketkit.seams.Layer`.
    """
    return {}


@hookspec
def socketkit_dispatchers() -> Mapping[str, type[Dispatcher]]:
    """Offer dispatchers, by the name used in ``dispatcher = "name:VALUE,option=value"``.

    Returns: recipe classes by name, see `socketkit.seams.Dispatcher`.
    """
    return {}


@hookspec
def socketkit_lifecycles() -> Mapping[str, type[Lifecycle]]:
    """Offer lifecycles, by the name used in ``lifecycle = "name:VALUE,option=value"``.

    Returns: recipe classes by name, see `socketkit.seams.Lifecycle`.
    """
    return {}


@hookspec
def socketkit_observers(server: Any) -> Iterable[object]:  # noqa: ARG001 - pluggy passes arguments by name
    """Offer observers for a server that is about to start: objects with any of the methods in `socketkit.seams.EVENTS`.

    Called for each server, in the thread that starts it. Inspect `server` to decide whether to observe it, but do not change it.
    Unlike the other hooks, this one cannot break a server: its errors are logged, and the server starts without its observers.

    Returns: the observers; empty to ignore this server.
    """
    return ()
