"""Installs the drop-in under the standard library's name, for `socketkit run`, in a program and the Python processes it starts.

The interpreter itself runs the program, so that it behaves as under a plain ``python``. The program finds the drop-in through its
environment, which its children inherit. `environment` builds that; it makes each interpreter import ``child/sitecustomize.py``.
`install` then runs at the first ``import socketserver`` in a process, and not before.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from socketkit import socketserver
from socketkit._engine.override import Override
from socketkit.composition import config

NAME = "socketserver"

_SHIM = str(Path(__file__).parent / "child")


def environment(words: int, dispatcher: str | None = None, lifecycle: str | None = None) -> dict[str, str]:
    """Return the environment for an interpreter whose last `words` arguments are the program and its own arguments.

    dispatcher, lifecycle: text for the parts that every server in the program runs under; None: those its class is named for.
    """
    variables = {key: value for key, value in os.environ.items() if not key.startswith("SOCKETKIT_RUN")}
    if sys.flags.ignore_environment:  # the new interpreter must read PYTHONPATH, so drop all other variables
        variables = {key: value for key, value in variables.items() if not key.startswith("PYTHON")}
    given = variables.get("PYTHONPATH")
    path = [each for each in given.split(os.pathsep) if each != _SHIM] if given else []  # an empty entry is the current folder
    chosen = {"SOCKETKIT_RUN_DISPATCHER": dispatcher, "SOCKETKIT_RUN_LIFECYCLE": lifecycle}
    return {
        **variables,
        "PYTHONPATH": os.pathsep.join((_SHIM, *path)),
        "SOCKETKIT_RUN": f"{sys.implementation.cache_tag}:{sys.prefix}",
        "SOCKETKIT_RUN_WORDS": str(words),
        **{name: text for name, text in chosen.items() if text is not None},
    }


def install() -> ModuleSpec:
    """Put the drop-in into `sys.modules` as ``socketserver``, with the parts chosen in the environment; return its spec.

    May be called repeatedly.
    Raises: the errors of `socketkit.composition.config`; nothing is installed then.
    """
    if socketserver.__name__ == NAME:
        sys.modules[NAME] = socketserver
        return _spec()
    for name in socketserver.__all__:
        getattr(socketserver, name).__module__ = NAME
    socketserver.__name__, socketserver.__package__ = NAME, ""
    socketserver.__spec__ = spec = _spec()
    socketserver.__loader__ = spec.loader
    sys.modules[NAME] = socketserver  # before the choice: a plugin may import it
    try:
        _choose()
    except BaseException:
        del sys.modules[NAME]
        socketserver.__name__ = f"socketkit.{NAME}"
        raise
    return spec


def _choose() -> None:
    dispatcher, lifecycle = os.environ.get("SOCKETKIT_RUN_DISPATCHER"), os.environ.get("SOCKETKIT_RUN_LIFECYCLE")
    Override.dispatcher = config.dispatcher(dispatcher) if dispatcher else None
    Override.lifecycle = config.lifecycle(lifecycle) if lifecycle else None
    Override.nodelay = True


class _Loader(SourceFileLoader):
    """Returns the existing module even on a fresh import or a reload, so that there is only one set of classes."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002 - the import system's signature
        return socketserver

    def exec_module(self, module: ModuleType) -> None:
        pass


def _spec() -> ModuleSpec:
    file = str(socketserver.__file__)
    spec = spec_from_file_location(NAME, file, loader=_Loader(NAME, file))
    assert spec is not None  # noqa: S101 - never None when a loader is given
    return spec
