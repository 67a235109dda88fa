# ruff: noqa: INP001 - the interpreter is given this folder to run; it is no package
"""``python FOLDER`` is the command ``socketkit``, wherever it was imported from: what a program that starts itself again calls."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[3])

from socketkit.cli import main  # noqa: E402 - only now can it be found

main(prog_name="socketkit")
