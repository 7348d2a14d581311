"""Rules for the settings of losses: each returns the value, or names the setting, the rule and the value."""

import math
from typing import TypeVar

Choice = TypeVar("Choice", bound=str)


def finite(name: str, value: float) -> float:
    """A finite number.

    Raises:
        ValueError: If it is infinite or NaN.
    """
    if not math.isfinite(value):
        raise ValueError(f"Expected `{name}` to be finite, but got {value}.")
    return value


def non_negative(name: str, value: float) -> float:
    """A finite number of at least 0.

    Raises:
        ValueError: If it is negative, infinite or NaN.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"Expected `{name}` to be finite and non-negative, but got {value}.")
    return value


def positive(name: str, value: float) -> float:
    """A finite number above 0.

    Raises:
        ValueError: If it is not positive, or infinite or NaN.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"Expected `{name}` to be finite and positive, but got {value}.")
    return value


def share(name: str, value: float) -> float:
    """A share between 0 and 1.

    Raises:
        ValueError: If it lies outside.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"Expected `{name}` to be in [0, 1], but got {value}.")
    return value


def one_of(name: str, value: Choice, choices: tuple[str, ...]) -> Choice:
    """One of some names.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in choices:
        listed = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"Expected `{name}` to be one of {listed}, but got {value!r}.")
    return value
