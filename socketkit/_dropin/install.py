"""Installs the drop-in under the standard library's name, for `socketkit run`, in a program and the Python processes it starts.

The interpreter itself runs the program, so that it behaves as under a plain ``python``. The program finds the drop-in through its
environment, which its children inherit: see `socketkit._dropin.start`. It makes each interpreter import ``child/sitecustomize.py``.
`install` then runs at the first ``import socketserver`` in a process, and not before.
"""

from __future__ import annotations

import os
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import SourceFileLoader, spec_from_file_location  # importlib.util, without its imports

from socketkit import socketserver
from socketkit._engine.override import Override

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from types import ModuleType

NAME = "socketserver"


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
    dispatcher, lifecycle, limits = (os.environ.get(f"SOCKETKIT_RUN_{name}") for name in ("DISPATCHER", "LIFECYCLE", "LIMITS"))
    stats = "SOCKETKIT_RUN_STATS" in os.environ
    if dispatcher or lifecycle or limits or stats:
        from socketkit._engine import admission, connection, deadlines, drain  # noqa: F401, PLC0415 - now: a program may change its root folder before it serves
        from socketkit.composition import config  # noqa: PLC0415 - without a choice, nothing of it is needed

        Override.choose(
            config.dispatcher(dispatcher) if dispatcher else None,
            config.lifecycle(lifecycle) if lifecycle else None,
            config.classic_limits(limits) if limits else None,
            stats=stats,
        )
    if lifecycle and "SOCKETKIT_READY_FD" in os.environ:  # not what a service manager passes: that is the program's
        from socketkit._system import activation  # noqa: PLC0415 - as above

        activation.receive()  # now: what the program starts must not inherit the sockets
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
