"""``python -m socketkit`` is the command ``socketkit``."""

from socketkit.cli import main

if __name__ == "__main__":
    main()
