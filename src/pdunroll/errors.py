"""Exceptions and checks for invalid input."""

from __future__ import annotations

import math
from contextlib import suppress
from numbers import Real


class InputError(ValueError):
    """Invalid input. The message is one line that names the file or setting and says what is valid.

    The commands print it and exit with status 2; in Python it is an ordinary `ValueError`.

    Examples:
        >>> import pdunroll
        >>> try:
        ...     pdunroll.quantize([0.5], bits=0)
        ... except pdunroll.InputError as error:
        ...     print(error)
        bits must be an integer in 1..32, got 0
    """


class DivergenceError(InputError):
    """A training whose numbers are no longer finite."""


def require_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return `value` if it is an integer in [minimum, maximum]; raise `InputError` otherwise."""
    upper = math.inf if maximum is None else maximum
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= upper:
        wanted = f"at least {minimum}" if maximum is None else f"in {minimum}..{maximum}"
        raise InputError(f"{name} must be an integer {wanted}, got {shown(value)}")
    return value


def require_positive(name: str, value: object) -> float:
    """Return `value` as a float if it is a finite number above 0; raise `InputError` otherwise."""
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            number = float(value)
    if not 0 < number < math.inf:
        raise InputError(f"{name} must be a finite number above 0, got {shown(value)}")
    return number


def require_within(name: str, value: float, least: float, most: float) -> float:
    """Return `value` if it is in [least, most]; raise `InputError` otherwise."""
    if not least <= value <= most:
        raise InputError(f"{name} must be in [{least:g}, {most:g}], got {shown(value)}")
    return value


def require_share(name: str, value: float) -> float:
    """Return `value` if it is strictly between 0 and 1; raise `InputError` otherwise."""
    if not 0 < value < 1:
        raise InputError(f"{name} must be between 0 and 1, got {shown(value)}")
    return value


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`; raise `InputError` otherwise."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")
    return value


def require_name(name: str, value: str) -> str:
    """Return `value` if it can name one folder or file; raise `InputError` otherwise."""
    if value in ("", ".", "..") or not value.isprintable() or any(mark in value for mark in "/\\"):
        raise InputError(f"{name} must be the name of a folder, got {value!r}")
    return value


def shown(value: object) -> str:
    """Return the `repr` of a value, on one line and cut to 100 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}..."
