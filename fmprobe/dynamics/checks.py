"""Checks of numbers that callers give, written once."""

from typing import Any


def check_counts(least: int = 1, **values: Any) -> None:
    """Raise ValueError, naming it, where one of the values is no whole number from `least` up."""
    for name, value in values.items():
        if not _is_whole(value, least):
            raise ValueError(f"{name} must be a whole number and at least {least}, got {value}")


def check_seed(seed: Any) -> None:
    """Raise ValueError where torch and numpy do not both take a seed."""
    if not _is_whole(seed, 0) or seed >= 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed}")


def _is_whole(value: Any, least: int) -> bool:
    try:
        return not isinstance(value, bool) and bool(value >= least) and not value % 1  # nan is no such number either
    except (TypeError, ValueError, RuntimeError):  # of text, of nothing, of several numbers
        return False
