"""Checks of numbers that callers give, written once."""

from typing import Any


def check_counts(least: int = 1, **values: Any) -> None:
    """Raise ValueError, naming it, where one of the values is no whole number from `least` up."""
    for name, value in values.items():
        if not value >= least or value % 1:  # nan is refused too
            raise ValueError(f"{name} must be a whole number and at least {least}, got {value}")


def check_seed(seed: Any) -> None:
    """Raise ValueError where torch and numpy do not both take a seed."""
    if not 0 <= seed < 2**63 or seed % 1:
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed}")
