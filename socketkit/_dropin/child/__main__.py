# ruff: noqa: INP001 - the interpreter runs this folder directly; it is not a package
"""Makes ``python FOLDER`` run the command ``socketkit``, wherever it is installed. Programs that restart themselves use it."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[3])

from socketkit.cli import main  # noqa: E402 - importable only after the line above

main(prog_name="socketkit")
