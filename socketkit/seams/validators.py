"""Validators for the fields of recipes. Each raises ValueError with the field's name, its value, and what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

Validator = Callable[[Any, Any, Any], None]


def at_least(least: int, most: int | None = None) -> Validator:
    """Return a validator for whole numbers from `least` to `most`; None: no upper bound."""
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"

    def check(_recipe: object, field: Any, value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
            raise ValueError(f"{field.name} must be a whole number {allowed}, not {value!r}")

    return check


def frozen_list(value: Any) -> Any:
    """Return a list as a tuple, and anything else as it is: the converter of a field that holds several values."""
    return tuple(value) if isinstance(value, list) else value


def check_each(check: Callable[[Any], object], field: Any, value: Any, allowed: str) -> None:
    """Check each value of a tuple by calling `check`, which raises ValueError."""
    if not isinstance(value, tuple):
        raise ValueError(f"{field.name} must be a list of {allowed}, not {value!r}")  # noqa: TRY004 - as every validator here
    for each in value:
        try:
            check(each)
        except ValueError as error:
            raise ValueError(f"{field.name} must be a list of {allowed}: {error}") from None


def is_number(value: object) -> bool:
    """Return whether this is a number that fits into a finite float; a boolean does not count."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def seconds(_recipe: Any, field: Any, value: Any, or_none: str = "") -> None:
    """Accept a finite number of seconds, 0 or more."""
    if not is_number(value) or value < 0:
        raise ValueError(f"{field.name} must be 0 or more seconds{or_none}, not {value!r}")


def seconds_or_none(recipe: Any, field: Any, value: Any) -> None:
    """Accept a finite number of seconds, 0 or more, or None for no limit."""
    if value is not None:
        seconds(recipe, field, value, ", or none for no limit")


def some_seconds_or_none(recipe: Any, field: Any, value: Any) -> None:
    """Accept a finite number of seconds, more than 0, or None for no limit."""
    seconds_or_none(recipe, field, value)
    if value == 0:
        raise ValueError(f"{field.name} must be more than 0 seconds, or none for no limit")


def permission_bits(_recipe: Any, field: Any, value: Any) -> None:
    """Accept permission bits for a path, or None for those that the umask leaves."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0o777):  # noqa: PLR2004
        raise ValueError(f"{field.name} must be permission bits from 0o000 to 0o777, or none to apply the umask, not {value!r}")


def socket_path(_recipe: Any, field: Any, value: Any) -> None:
    """Accept the path of a Unix socket, or an abstract name."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{field.name} must be a file name, or @name for an abstract one, not {value!r}")


# --- lists -----------------------------------------------------------------------------------------------------------
