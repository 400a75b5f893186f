"""Residual curves: how far the steps of orbits move, in latent space and in images."""

from collections.abc import Callable

import torch
from torch import Tensor

from fmprobe.dynamics.calls import Function
from fmprobe.dynamics.norms import norms

POINTS = 80  # of a curve that are kept, evenly spread over the logarithm of the step


class ResidualCurves:
    """An observer of `iterate` that keeps the norm ||z[t+1] - z[t]|| of the first `starts` orbits, at chosen steps.

    Fumero et al., ICLR 2026, fig. 12, 16, 17.
    """

    def __init__(self, starts: int, max_steps: int) -> None:
        spread = torch.logspace(0, torch.tensor(float(max_steps)).log10().item(), POINTS).round().long()
        self.steps = spread.clamp(1, max_steps).unique()
        self._column = torch.full((max_steps + 1,), -1).scatter(0, self.steps, torch.arange(len(self.steps)))
        self._taken = torch.zeros(starts, dtype=torch.long)
        self.norms = torch.full((starts, len(self.steps)), torch.nan)

    def __call__(self, indices: Tensor, before: Tensor, after: Tensor) -> None:
        mine = indices < len(self._taken)
        if not bool(mine.any()):
            return
        rows = indices[mine].cpu()
        self._taken[rows] += 1
        columns = self._column[self._taken[rows]]
        kept = columns >= 0
        if bool(kept.any()):
            change = (after[mine] - before[mine]).flatten(1)
            self.norms[rows[kept], columns[kept]] = norms(change).cpu().float()[kept]

    def rows(self, indices: Tensor) -> Tensor:
        """The curves of starts `(k,)`, `(k, points)`, nan for those that are not watched."""
        curves = self.norms.new_full((len(indices), len(self.steps)), torch.nan)
        mine = indices < len(self._taken)
        curves[mine] = self.norms[indices[mine]]
        return curves

    def restore(self, norms: Tensor, taken: Tensor) -> None:
        """Take over all curves, and the number of steps of each."""
        self.norms, self._taken = norms, taken

    def to_dict(self) -> dict[str, list]:
        """`steps`, and for each start the norms at them, as long as its orbit ran (None where not finite)."""
        curves = []
        for row, taken in zip(self.norms, self._taken, strict=True):
            values = row[self.steps <= taken].tolist()
            curves.append([float(f"{v:.4g}") if v == v and v != float("inf") else None for v in values])
        return {"steps": self.steps.tolist(), "norms": curves}


def norms_along(
    f: Function,
    latents: Tensor,
    steps: int,
    *,
    decode: Function | None = None,
    encode: Function | None = None,
    stepped: Callable[[], object] = lambda: None,
) -> dict[str, Tensor]:
    """Norms along the orbits of a batch of latents, each of which takes all steps (Fumero et al., fig. 12, 16, 17).

    Args:
        f: the latent map.
        latents: starts `(B, *latent_shape)`.
        steps: number of steps T.
        decode: D, where the images of the latents are looked at too.
        encode: E, where f is E after D, so that each latent is decoded once.
        stepped: called after every step.

    Returns:
        float32 on the CPU, nan where not finite: `start_norm` `(B, 1)`, ||z[0]||; and `(B, T)`, whose column t - 1
        belongs to step t, `latent`, ||z[t] - z[t-1]||; `norm`, ||z[t]||; and, where there is a decoder, `output`,
        ||D(z[t]) - D(z[t-1])||.
    """
    rows: dict[str, list[Tensor]] = {"start_norm": [_norms(latents)], "latent": [], "norm": []}
    image = None
    if decode is not None:
        image, rows["output"] = decode(latents), []
    for _ in range(steps):
        after = f(latents) if encode is None or image is None else encode(image)
        rows["latent"].append(_norms(after - latents))
        if decode is not None and image is not None:
            painted = decode(after)
            rows["output"].append(_norms(painted - image))
            image = painted
        rows["norm"].append(_norms(after))
        latents = after
        stepped()
    return {name: torch.stack(row, dim=1) for name, row in rows.items()}


def _norms(values: Tensor) -> Tensor:
    """Row by row, on the CPU, nan where not finite."""
    found = norms(values.flatten(1)).float().cpu()
    return torch.where(found.isfinite(), found, torch.nan)
