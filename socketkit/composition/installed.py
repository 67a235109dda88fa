"""Whether plugins are installed, without importing `importlib.metadata`, which takes longer than serving a program's first request."""

from __future__ import annotations

import os
import sys


def may_have_plugins(group: str) -> bool:
    """Return whether a distribution may have an entry point in the group; False only if none has.

    It looks where `importlib.metadata` does, and returns True for whatever only that can read: zip files, eggs, and the import hooks of
    other libraries. Source: CPython's Lib/importlib/metadata/__init__.py, `FastPath` and `MetadataPathFinder`.
    """
    finders = {getattr(each, "__module__", "") for each in sys.meta_path if hasattr(each, "find_distributions")}
    if finders != {"_frozen_importlib_external"}:
        return True
    return any(_is_unknown(each) or _names(group, each or ".") for each in map(str, sys.path))


def _is_unknown(folder: str) -> bool:
    return folder.endswith(".egg") or os.path.isfile(folder)  # noqa: PTH113 - importing pathlib takes longer


def _names(group: str, folder: str) -> bool:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - as above
    except OSError:
        return False
    return any(
        _has_group(group, f"{folder}/{name}/entry_points.txt") for name in names if name.lower().endswith((".dist-info", ".egg-info"))
    )


def _has_group(group: str, path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as above
            lines = file.read().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return any(line.strip().strip(b"[]").strip() == group.encode() for line in lines)
