"""Batches of images and latents: what is checked of them, and how a function is applied to them in parts."""

import math
import operator
from typing import Any

import torch
from torch import Tensor, nn

from fmprobe.dynamics.calls import Function
from fmprobe.errors import InputError
from fmprobe.pixels import ROUNDING


def check_images(
    images: Tensor,
    shape: tuple[int, ...],
    name: str | None = None,
    *,
    any_range: bool = False,
    what: str = "images",
) -> None:
    """Check that images are finite floats `(n, *shape)` in [0, 1], up to rounding.

    Args:
        images: the images.
        shape: shape of one image.
        name: the model that takes them, for the message.
        any_range: whether the values are left unchecked.
        what: what the images are called in the message.

    Raises:
        InputError: they are not.
    """
    check_batch(images, tuple(shape), name, what)
    if any_range or not images.numel():
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if not math.isfinite(high - low):
        raise InputError(f"{what} hold values that are not finite: expected floats in [0, 1], leave such images out")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise InputError(
            f"{what} lie in [{low:.4g}, {high:.4g}]: expected floats in [0, 1], as model.load_images reads them; "
            f"{_remedy(low, high)}"
        )


def _remedy(low: float, high: float) -> str:
    """What to do about pixels that lie in [low, high], by the likely cause."""
    if low >= -0.25 and high <= 1.25:
        return "clamp them if resizing made them overshoot"
    if low >= 0 and high > 2:
        return f"divide them by {255 if high <= 255 else 'the largest value that their type holds'}"
    return "undo the normalisation (images * std + mean, or (images + 1) / 2 for a range of [-1, 1])"


def check_batch(x: Tensor, expected: tuple[int, ...], name: str | None, what: str) -> None:
    """Raise InputError if x is not a tensor of floats `(B, *expected)`."""
    kind = "latents" if what == "latents" else "images"
    takes = f"{name} takes {kind}" if name else f"expected {kind}"
    given = "" if what == kind else f" as {what}"
    if not isinstance(x, Tensor) or not x.is_floating_point():
        hint = "" if kind == "latents" else ", in [0, 1], as fmprobe.load_images reads them"
        got = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__}"
        remedy = ": divide bytes by 255" if got == torch.uint8 and kind == "images" else ""
        raise InputError(f"{takes} as tensors of floats{hint}, got {got}{given}{remedy}")
    shape = tuple(x.shape)
    if len(shape) != 1 + len(expected) or shape[1:] != expected:
        hint = f": pass {kind}[None] for a batch of one" if shape == expected else ""
        if name is None:
            raise InputError(
                f"{what} of shape {shape}: expected floats in [0, 1] of shape (n, {in_words(expected)}){hint}"
            )
        raise InputError(f"{takes} of shape (B, {in_words(expected)}), got {shape}{given}{hint}")


def check_mode(what: str, function: Any) -> None:
    """Raise InputError if a function belongs to a module in training mode whose values differ in that mode."""
    owner = getattr(function, "__self__", function)
    for part in owner.modules() if isinstance(owner, nn.Module) else ():
        varies = isinstance(part, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm)
        if varies and part.training:
            raise InputError(
                f"{what} is in training mode, where its {type(part).__name__} makes a row depend on chance or on other "
                "rows: call eval() on the module first"
            )


def in_batches(function: Function, rows: Tensor, batch_size: int | None) -> Tensor:
    """Apply a function to at most `batch_size` rows at a time; its values are copied."""
    if batch_size is None or len(rows) <= batch_size:
        return _own(function(rows))
    return torch.cat([_own(function(part)) for part in rows.split(batch_size)])


def _own(out: Tensor) -> Tensor:
    """A copy of a function's value, since the function may use its buffer again."""
    return out.clone(memory_format=torch.contiguous_format)


def checked_shape(what: str, shape: Any) -> tuple[int, ...]:
    """Check a shape and return it as a tuple of ints."""
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = (0,)
    if any(size < 1 for size in sizes):
        given = tuple(shape) if isinstance(shape, list | tuple) else shape
        raise InputError(
            f"{what} {given!r}: expected a tuple of sizes from 1 up, without the size of the batch, such as (3, 64, 64)"
        )
    return sizes


def in_words(shape: tuple[int, ...]) -> str:
    """A shape as messages show it: "3, 64, 64"."""
    return ", ".join(map(str, shape))
