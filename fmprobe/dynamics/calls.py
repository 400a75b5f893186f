"""How a function of the caller is called: on memory of its own, a bounded number of rows a call, its values checked."""

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


class Apart:
    """f on any number of latents `(n, *latent_shape)`: see `apart`."""

    def __init__(self, f: Function, batch_size: int | None) -> None:
        self.f, self.batch_size = f, batch_size

    def __call__(self, latents: Tensor) -> Tensor:
        if not len(latents):
            return latents.clone()
        if self.batch_size is None or len(latents) <= self.batch_size:
            return _call(self.f, latents)
        return torch.cat([_call(self.f, block) for block in latents.split(self.batch_size)])


def apart(f: Function, batch_size: int | None = None) -> Apart:
    """f as all of `dynamics` calls it: on a copy of its argument, its value copied, at most `batch_size` rows a call.

    So f may change its argument, keep it, return it, or return one buffer from every call: it reaches no memory that is
    read afterwards. Two copies of a latent cost next to nothing beside f. Of no rows f is not called. Values have the
    latents' type and device; they can be differentiated where gradients are on. An f that is apart already keeps the
    smaller bound. A call raises ValueError where f gives no tensor of floats of the shape that it got.
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
