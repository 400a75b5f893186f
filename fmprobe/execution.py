"""How a latent map is evaluated: the batch size, halved when memory runs out, and autocast, compilation and
determinism.
"""

import gc
import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function

FIXED = 8  # number of rows of every call, where results must not depend on how many rows there are


@dataclass(frozen=True)
class Execution:
    """How a latent map is evaluated.

    Attributes:
        autocast: dtype of f's matrix products; latents stay in float32.
        compile: backend of `torch.compile` such as "cudagraphs", used where no gradient is asked for.
        fixed: number of rows of every call, which is padded, so that the result for a row does not depend on the
            others.
    """

    autocast: torch.dtype | None = None
    compile: str | None = None
    fixed: int | None = None

    def apply(self, f: Function, device: torch.device) -> Function:
        """Return f, evaluated in this way on `device`."""
        return _Evaluated(f, self, device)


class _Evaluated:
    """f on any number of latents; it remembers for how many rows memory ran out."""

    def __init__(self, f: Function, how: Execution, device: torch.device) -> None:
        self.f, self.how, self.device, self.rows = f, how, device, how.fixed
        self._compiled: Function | None = None

    def __call__(self, latents: Tensor) -> Tensor:
        while True:
            rows = self.rows or max(1, len(latents))
            try:
                parts = [self._call(part) for part in latents.split(rows)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except Exception as error:
                if rows == 1 or not _out_of_memory(error):
                    raise
                self.rows = rows // 2
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _call(self, latents: Tensor) -> Tensor:
        n, fixed = len(latents), self.how.fixed and self.rows
        if fixed and 0 < n < fixed:
            latents = torch.cat([latents, latents[:1].expand(fixed - n, *latents.shape[1:])])
        cast = torch.autocast(self.device.type, self.how.autocast) if self.how.autocast else nullcontext()
        with cast:
            after = self._function()(latents.clone())[:n]  # f may change its argument before memory runs out
        device = after.device if after.is_meta else latents.device  # a meta tensor holds no values to move
        return after.to(device, latents.dtype, copy=True)  # f may return a buffer that it uses again

    def _function(self) -> Function:
        # Compiled code lacks some of the derivatives that products with the Jacobian need.
        if self.how.compile is None or torch.is_grad_enabled():
            return self.f
        if self._compiled is None:
            compiled: Any = torch.compile(self.f, backend=self.how.compile, dynamic=True)
            self._compiled = compiled
        return self._compiled or self.f


def be_deterministic() -> None:
    """Make torch use deterministic algorithms only, and raise an error where there is none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # this is read when CUDA is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _out_of_memory(error: Exception) -> bool:
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)
