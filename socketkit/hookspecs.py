"""The hooks of a plugin: five functions, all optional, called when a server is composed and never on a request.

A plugin is a module (or any object) that a distribution names in the entry-point group ``socketkit``. It marks its functions with
`hookimpl` and returns *recipes*, frozen attrs classes with the shape of a Protocol in `socketkit.seams`:

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

From then on ``dispatcher="trio:8"`` and ``{ use = "trio", workers = 8 }`` mean ``Trio(workers=8)``.

What holds for every hook:

* A name is made of letters, digits, ``-`` and ``_``. It belongs to whoever offers it alone: when two plugins offer one name,
  using that name is a `ClashError`, and a built-in name is no exception.
* Call the entry point as the part where you can: when the plugin is broken, whoever asks for that name is told why.
* A text value (``trio:8``) fills the recipe's first positional field; a field called ``inner`` takes another part of the same kind
  (``trio:8/pool``). Options are checked against the types of the fields, so import those types at run time, and put what else must
  hold into attrs validators. ``repr=False`` on a field keeps its value out of error messages.
* A plugin that does not import, that marks a hook of another name or with other arguments, or whose hook raises or returns something
  else, is broken as a whole: a `PluginError` for those who need it, and a line in ``socketkit plugins`` for everyone else.
* Hooks may be called more than once in a process, and by any thread. They create recipes' classes, not sockets or threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pluggy

from socketkit.seams import Dispatcher, Layer, Lifecycle, Transport

PROJECT = "socketkit"
"""pluggy's name for the project, and the entry-point group in which plugins are found."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's function as the implementation of the hook of the same name."""


@hookspec
def socketkit_transports() -> Mapping[str, type[Transport]]:
    """Offer places for requests to come from, by the scheme of their URL.

    A recipe is built from ``name://TEXT?option=value``. TEXT goes to its class method ``locate(text) -> dict[str, Any]``, which
    returns fields or raises ValueError with one sentence; without a ``locate``, TEXT fills the first positional field.

    Returns: scheme to recipe class, see `socketkit.seams.Transport`.
    """
    return {}


@hookspec
def socketkit_layers() -> Mapping[str, type[Layer]]:
    """Offer steps between accept and handler, by the word that stands in a URL after the transport: ``tcp+name://``.

    Options of a layer are dotted: ``tcp+name://host:port?name.option=value``.

    Returns: name to recipe class, see `socketkit.seams.Layer`.
    """
    return {}


@hookspec
def socketkit_dispatchers() -> Mapping[str, type[Dispatcher]]:
    """Offer ways to run handlers, by the name used in ``dispatcher = "name:VALUE,option=value"``.

    Returns: name to recipe class, see `socketkit.seams.Dispatcher`.
    """
    return {}


@hookspec
def socketkit_lifecycles() -> Mapping[str, type[Lifecycle]]:
    """Offer ways to start, stop and drain, by the name used in ``lifecycle = "name:VALUE,option=value"``.

    Returns: name to recipe class, see `socketkit.seams.Lifecycle`.
    """
    return {}


@hookspec
def socketkit_observers(server: Any) -> Iterable[object]:  # noqa: ARG001 - hooks are called by the names of their arguments
    """Offer observers for a server that is about to start: objects with any of the methods in `socketkit.seams.EVENTS`.

    Called for each server, in the thread that starts it. Look at `server` to decide whether to watch it; do not change it.
    Unlike the other hooks this one cannot break a server: what it raises is logged, and the server starts without its observers.

    Returns: the observers, none for a server of no interest.
    """
    return ()
