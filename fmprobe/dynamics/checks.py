"""Checks of the numbers that callers give."""

from typing import Any

from torch import Tensor


def check_counts(least: int = 1, **values: Any) -> None:
    """Check that each value is a whole number and at least `least`.

    Raises:
        ValueError: a value is not; the message names it.
    """
    for name, value in values.items():
        if not _is_whole(value, least):
            raise ValueError(f"{name} must be a whole number and at least {least}, got {value}")


def check_seed(seed: Any) -> None:
    """Check that a number can seed both torch and numpy.

    Raises:
        ValueError: it cannot.
    """
    if not _is_whole(seed, 0) or seed >= 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed}")


def check_starts(starts: Any) -> None:
    """Check that starts are a tensor of floats `(n, *latent_shape)`.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(starts, Tensor):
        raise ValueError(f"starts must be a tensor of shape (n, *latent_shape), got a {type(starts).__name__}")
    if starts.ndim < 2 or not starts.is_floating_point():
        raise ValueError(f"starts must be floats of shape (n, *latent_shape), got {starts.dtype} {tuple(starts.shape)}")
    if starts.shape[1:].numel() == 0:
        raise ValueError(f"latents must not be empty, got shape {tuple(starts.shape)}")


def _is_whole(value: Any, least: int) -> bool:
    try:
        return not isinstance(value, bool) and bool(value >= least) and not value % 1  # this rejects nan as well
    except (TypeError, ValueError, RuntimeError):  # raised by text, by None and by tensors of several numbers
        return False
