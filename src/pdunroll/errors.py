"""The one exception that means: the input is at fault, and here is what would be right."""

from __future__ import annotations

import math


class InputError(ValueError):
    """Bad input. The message is one line that names the file or setting and what would be right.

    The entry points print it and leave with status 2; in Python it is an ordinary `ValueError`.
    """


class DivergenceError(InputError):
    """A training whose numbers are no longer finite."""


def require_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return `value` if it is an integer in [minimum, maximum]; raise `InputError` otherwise."""
    upper = math.inf if maximum is None else maximum
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= upper:
        wanted = f"at least {minimum}" if maximum is None else f"in {minimum}..{maximum}"
        raise InputError(f"{name} must be an integer {wanted}, got {value!r}")
    return value


def require_positive(name: str, value: object) -> float:
    """Return `value` as a float if it is finite and above 0; raise `InputError` otherwise."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"{name} must be a finite number above 0, got {value!r}")
    return number


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`; raise `InputError` otherwise."""
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return str(value)


def require_name(name: str, value: str) -> str:
    """Return `value` if it can name one folder or file; raise `InputError` otherwise."""
    if value in ("", ".", "..") or not value.isprintable() or any(mark in value for mark in "/\\"):
        raise InputError(f"{name} must be the name of a folder, got {value!r}")
    return value
