"""Interpreters of this process that share the listeners, each with its own interpreter lock and dispatcher."""

from __future__ import annotations

import sys
from functools import reduce
from typing import TYPE_CHECKING, Any

import attrs

from socketkit.dispatchers._supervised import Supervised
from socketkit.errors import IncompatibleError
from socketkit.seams import Work

if TYPE_CHECKING:
    from socketkit.dispatchers._supervision.interpreters import InterpreterSupervisor


@attrs.frozen
class Interpreters(Supervised):
    """A fixed number of interpreters in this process, each serving with an inner dispatcher. They run Python code on all cores at once."""

    def __attrs_post_init__(self) -> None:
        forks = any(getattr(self.inner, trait, False) for trait in ("forks_workers", "forks_requests"))
        if forks or isinstance(self.inner, Interpreters):
            raise ValueError("inner must be a dispatcher with threads or an event loop, such as adaptive; it cannot fork")

    @property
    def requires(self) -> frozenset[str]:
        """What the platform must provide: interpreters of a process, and whatever the inner dispatcher needs."""
        return frozenset({"Python 3.14 or later", *getattr(self.inner, "requires", {"threads"})})

    @property
    def interpreters(self) -> int:
        """Number of interpreters that serve together. Each gets an equal share of the server's limits."""
        return self.count

    def check(self, handler: Any) -> None:
        """Raise IncompatibleError if another interpreter could not import the handler, or whatever the inner dispatcher's check raises."""
        name = getattr(handler, "__qualname__", repr(handler))
        module: Any = getattr(handler, "__module__", None)
        if module == "__main__":
            reason = f"cannot import {name} from the program's main file into another interpreter"
            raise IncompatibleError("Interpreters", reason, "define it in a module that can be imported, or use prefork")
        if _found(module, name) is not handler:
            reason = f"cannot import {name} into another interpreter: it is no name of the module {module}"
            raise IncompatibleError("Interpreters", reason, "define it at the top of a module, or use prefork")
        if module is not None and not _is_importable(module):  # without a handler there is no module
            reason = f"cannot import {name} into another interpreter: its module {module} is not on sys.path"
            raise IncompatibleError("Interpreters", reason, "add the folder of that module to sys.path, or use prefork")
        super().check(handler)

    def start(self, work: Work) -> InterpreterSupervisor:
        """Return the live part."""
        from socketkit.dispatchers._supervision.interpreters import InterpreterSupervisor  # noqa: PLC0415 - only for Python 3.14 and later

        return InterpreterSupervisor(self, work)


def _is_importable(module: str) -> bool:
    """Return whether the import system finds the module's top-level package. That it is loaded does not show it.

    For instance pytest loads test modules from their files, if it is told to with ``--import-mode=importlib``.
    """
    package = module.partition(".")[0]
    return any(finder.find_spec(package, None) is not None for finder in sys.meta_path)


def _found(module: Any, name: str) -> object:
    """Return what the module has under this qualified name; None if nothing."""
    try:
        return reduce(getattr, name.split("."), sys.modules[module])
    except (KeyError, AttributeError):
        return None
