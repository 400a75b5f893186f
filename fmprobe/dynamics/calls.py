"""Calls of a function that the caller gives: it gets its own memory and a bounded batch, and its values are checked."""

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


class Apart:
    """A function f on any number of latents `(n, *latent_shape)`; see `apart`."""

    def __init__(self, f: Function, batch_size: int | None) -> None:
        self.f, self.batch_size = f, batch_size

    def __call__(self, latents: Tensor) -> Tensor:
        if not len(latents):
            return latents.clone()
        if self.batch_size is None or len(latents) <= self.batch_size:
            return _call(self.f, latents)
        return torch.cat([_call(self.f, block) for block in latents.split(self.batch_size)])


def apart(f: Function, batch_size: int | None = None) -> Apart:
    """Wrap f as all of `dynamics` calls it: on copies, and on at most `batch_size` rows at a time.

    f gets a copy of its argument, and its value is copied too. So f may change its argument, keep it, return it, or
    return the same buffer from every call: it never reaches memory that is read later. Two copies of a latent cost next
    to nothing beside f.

    f is not called on an empty batch. Values get the dtype and device of the latents. They can be differentiated where
    gradients are on. Wrapping twice keeps the smaller batch size.

    A call raises ValueError where f does not return a tensor of floats of the shape of its argument.
    """
    if isinstance(f, Apart):
        bounds = [bound for bound in (f.batch_size, batch_size) if bound is not None]
        f, batch_size = f.f, min(bounds, default=None)
    return Apart(f, batch_size)


def _call(f: Function, latents: Tensor) -> Tensor:
    value = f(latents.clone(memory_format=torch.contiguous_format))
    if not isinstance(value, Tensor):
        raise ValueError(f"f must give a tensor of the shape of its batch, got a {type(value).__name__}")
    if value.shape != latents.shape:
        raise ValueError(
            f"f must keep the shape of its batch: it turned {tuple(latents.shape)} into {tuple(value.shape)}"
        )
    if not value.is_floating_point():
        raise ValueError(f"f must give floats: it turned {latents.dtype} into {value.dtype}")
    return value.to(latents.device, latents.dtype, copy=True)
