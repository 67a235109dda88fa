# ruff: noqa: INP001 - the interpreter finds this folder on its path; it is not a package
"""Runs `_socketkit_run` in each Python process of a program under ``socketkit run``, then imports the real sitecustomize.

The interpreter imports this by its name, from the folder that `socketkit._dropin.install` puts on PYTHONPATH. The program may start
any Python, so this file must run on every version.
"""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - importing pathlib would slow every start

if sys.version_info >= (3, 11) and "SOCKETKIT_RUN" in os.environ:
    import _socketkit_run  # type: ignore[import-not-found] # it is in this folder

    _socketkit_run.install(_here)

sys.path[:] = [_each for _each in sys.path if _each != _here]
sys.path_importer_cache.pop(_here, None)
del sys.modules["sitecustomize"]
__import__("sitecustomize")  # if there is none, the interpreter expects the ImportError that this raises
