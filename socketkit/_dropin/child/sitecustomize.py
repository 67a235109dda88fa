# ruff: noqa: INP001 - the interpreter finds this folder on its path; it is no package
"""Leads each Python process of a program under ``socketkit run`` to `_socketkit_run`, then makes way for the real sitecustomize.

The interpreter imports this by its name, from the folder that `socketkit._dropin.install` puts on PYTHONPATH. Whatever Python the program
starts comes here, so this one file is written for every version there is.
"""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib is more than a start should pay for

if sys.version_info >= (3, 11) and "SOCKETKIT_RUN" in os.environ:
    import _socketkit_run  # type: ignore[import-not-found] # it lies beside this file

    _socketkit_run.install(_here)

sys.path[:] = [_each for _each in sys.path if _each != _here]
sys.path_importer_cache.pop(_here, None)
del sys.modules["sitecustomize"]
__import__("sitecustomize")  # where there is none, the interpreter expects just the ImportError that this raises
