# ruff: noqa: INP001 - the interpreter finds this folder on its path; it is not a package
"""Answers ``import socketserver`` with socketkit's drop-in, in a process of a program that runs under ``socketkit run``.

Every Python process of the program runs this at startup, so it imports only modules that the interpreter has already loaded, and
nothing from socketkit until the program needs it. See `socketkit._dropin.install`.
"""

from __future__ import annotations

import os
import sys
from _frozen_importlib_external import PathFinder  # importlib.machinery without its imports
from _thread import get_ident

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import FrameType, ModuleType

NAME = "socketserver"


def install(here: str) -> None:
    """Install the import hook. here: this folder, in the `socketkit` that runs the program."""
    words = os.environ.pop("SOCKETKIT_RUN_WORDS", "")
    if words:
        _tell_how_it_was_started(here, int(words))
    same = os.environ["SOCKETKIT_RUN"] == f"{sys.implementation.cache_tag}:{sys.prefix}"
    if NAME in sys.modules:
        _forget(sys.modules[NAME])
    root = os.path.dirname(os.path.dirname(os.path.dirname(here)))  # noqa: PTH120 - importing pathlib would slow every start
    sys.meta_path.insert(0, _Finder(root if same else None))


def _tell_how_it_was_started(here: str, words: int) -> None:
    """Add ``socketkit run`` to `sys.orig_argv`, which some programs use to restart themselves.

    The command is this folder instead of ``-m socketkit``, because a new process may have a different import path.
    """
    chosen = [(f"--{name}", f"SOCKETKIT_RUN_{name.upper()}") for name in ("dispatcher", "lifecycle", "limits")]
    options = [word for option, variable in chosen if variable in os.environ for word in (option, os.environ[variable])]
    options += ["--stats"] if "SOCKETKIT_RUN_STATS" in os.environ else []
    at = len(sys.orig_argv) - words
    sys.orig_argv[at:at] = [here, "run", *options]


def _forget(real: ModuleType) -> None:
    """Remove a `socketserver` that a .pth file imported earlier, and all modules that hold something from it."""
    for name, module in list(sys.modules.items()):
        values = list(vars(module).values()) if hasattr(module, "__dict__") else []
        if module is real or any(value is real or _comes_from(value) for value in values):
            del sys.modules[name]


def _comes_from(value: object) -> bool:
    return isinstance(value, type) and any(getattr(base, "__module__", None) == NAME for base in type.mro(value))


def _importer() -> str:
    """Return the package of the code that imports; "" if there is none, as for the program itself."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - the import system does not say
    while frame is not None and frame.f_globals.get("__name__") in _IMPORT_SYSTEM:
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__", "")).partition(".")[0]


_IMPORT_SYSTEM = {"_frozen_importlib", "_frozen_importlib_external", "importlib._bootstrap", "importlib._bootstrap_external"}


class _Finder:
    def __init__(self, root: str | None) -> None:
        self._root = root  # None: not the environment that `socketkit run` was started in
        self._path = [*sys.path] if root is None else [*sys.path, root]  # the program's own folder is added later
        self._thread: int | None = None  # the thread that is importing socketkit
        self._ours = {"socketkit", NAME}  # packages whose imports must not find the program's modules: ours, and what it needs

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        if path is not None:
            return None
        if name == NAME:
            return self._drop_in()
        if name == "socketkit" and self._root is not None:
            return PathFinder.find_spec(name, [self._root])
        if self._thread == get_ident() or _importer() in self._ours:  # a program's module must not shadow one that socketkit needs
            self._ours.add(name)  # some of which are imported when the server serves
            return PathFinder.find_spec(name, self._path)
        return None

    def _drop_in(self) -> ModuleSpec | None:
        outer, self._thread = self._thread, get_ident()
        try:
            from socketkit._dropin import install as dropin  # noqa: PLC0415 - see the module's docstring

            return dropin.install()
        except Exception:
            if self._root is None:
                return None  # this environment has no socketkit, or a different one: keep its own socketserver
            raise
        finally:
            self._thread = outer
