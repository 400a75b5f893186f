"""Contraction: does f bring points together, over N(0, I) inputs at large, and locally along trajectories?"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.checks import check_counts
from fmprobe.dynamics.jacobian import NotDifferentiableError
from fmprobe.dynamics.lipschitz import (
    DIRECTIONS,
    DISTANCE,
    jacobian_sizes,
    latents_at,
    local_lipschitz,
    pairwise_lipschitz,
)
from fmprobe.errors import InputError
from fmprobe.probes.result import Result
from fmprobe.seeding import normal_rows

QUANTILES = (0.1, 0.5, 0.9)


class Spread:
    """Standard deviations of rows `(B, …)` that come in batches, in float64, one running sum a coordinate."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        values = rows.detach().flatten(1).cpu().double()
        self.count += len(values)
        self.total = self.total + values.sum(0)
        self.squares = self.squares + values.square().sum(0)

    @property
    def pooled(self) -> float:
        """Of all values of all rows together, about their one mean."""
        n = self.count * self.total.numel()
        return float((self.squares.sum() / n - (self.total.sum() / n) ** 2).clamp(min=0).sqrt())

    @property
    def across(self) -> float:
        """Between rows: the root of the variance of a coordinate over rows, averaged over coordinates."""
        means = self.total / self.count
        return float((self.squares / self.count - means.square()).clamp(min=0).mean().sqrt())


def std_ratio(function: Callable[[Tensor], Tensor], inputs: Iterable[Tensor]) -> dict[str, float | None]:
    """Standard deviation of what `function` gives over that of what it takes (Fumero et al., ICLR 2026, fig. 6).

    `inputs`: batches `(B, …)`. "pooled": of all values together, which sees the offsets between coordinates that
    are the same for every input. "across": over inputs, coordinate by coordinate, which does not, and so is below 1
    exactly where outputs lie closer together than inputs. None where an output is not finite. Raises InputError for
    fewer than two inputs, or inputs that do not vary.
    """
    before, after = Spread(), Spread()
    with torch.no_grad():
        for batch in inputs:
            before.add(batch)
            after.add(function(batch.clone()))  # that may change what it is given
    if before.count < 2:
        raise InputError(f"a standard deviation needs two inputs or more, got {before.count}")
    if not before.across > 0:
        raise InputError(f"the {before.count} inputs do not vary, so that there is no spread to compare with")
    ratios = {"pooled": after.pooled / before.pooled, "across": after.across / before.across}
    return {name: value if np.isfinite(value) else None for name, value in ratios.items()}


def noise_images(n: int, shape: tuple[int, ...], seed: int, batch_size: int) -> Iterator[Tensor]:
    """N(0, I) images `(B, *shape)` in batches, on the CPU, independent of the starts that N(0, I) latents are."""
    for i in range(0, n, batch_size):
        rows = normal_rows(min(batch_size, n - i), math.prod(shape), seed, "contraction: inputs", i)
        yield torch.from_numpy(rows).reshape(-1, *shape)


@dataclass(frozen=True)
class Contraction(Result):
    """How much a model contracts.

    `std_ratio`: by map ("f", "E", "D", those that there are), as `std_ratio`, on N(0, I) inputs of the map's shape.
    `steps`: of the trajectories that were looked at. `norms`, `radii` `(starts, steps)`: spectral norm and radius of
    J_f there, nan where the orbit is not finite; None where f has no derivative or the model no f. `local`
    `(starts, steps)`: largest ||f(a) - f(b)|| / ||a - b|| of a few pairs close by, a lower bound of the norm.
    `distant` `(starts // 2,)`: the same of pairs of starts. `absent`: why something is missing.
    """

    key: ClassVar[str] = "contraction"
    std_ratio: dict[str, dict[str, float | None]]
    steps: list[int]
    norms: Tensor | None
    radii: Tensor | None
    local: Tensor | None
    distant: Tensor | None
    absent: dict[str, str]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The key `contraction` of `results.json`: quantiles over starts, and shares of starts below 1, by step."""
        along = {
            name: None if values is None else [_summary(column) for column in values.T]
            for name, values in (("norms", self.norms), ("radii", self.radii), ("local", self.local))
        }
        return {
            "std_ratio": self.std_ratio,
            "steps": self.steps,
            **along,
            "distant": None if self.distant is None else _summary(self.distant),
            "absent": self.absent,
            "protocol": self.protocol,
        }


def probe_contraction(
    model: Autoencoder,
    *,
    n: int = 256,
    starts: int = 8,
    steps: tuple[int, ...] = (0, 1, 3, 10, 30),
    seed: int = 0,
    batch_size: int = 32,
) -> Contraction:
    """Contraction of a model (Fumero et al., ICLR 2026, def. 3, fig. 6).

    `n` N(0, I) inputs for the ratios of standard deviations; `starts` trajectories from N(0, I), at whose `steps` the
    Jacobian is examined. An encoder without a latent map has the ratio of E alone. Raises InputError for fewer than
    two inputs or starts, or steps that are negative.
    """
    if min(n, starts) < 2 or not steps or min(steps) < 0 or any(step % 1 for step in steps):
        raise InputError(
            f"contraction needs two inputs and starts or more, and steps from 0 up: got {n}, {starts}, {steps}"
        )
    check_counts(batch_size=batch_size)
    ratios, absent = _ratios(model, n, seed, batch_size), {}
    steps = tuple(sorted(set(steps)))
    norms = radii = local = distant = None
    if model.has_latent_map:
        f = model.latent_map
        points = latents_at(f, model.sample_latents(starts, seed), steps, batch_size)
        local = torch.stack([local_lipschitz(f, z, seed=seed, batch_size=batch_size) for z in points], 1)
        distant = pairwise_lipschitz(f, points[0], batch_size) if steps[0] == 0 else None
        try:
            sizes = [jacobian_sizes(f, z, batch_size) for z in points]
            norms, radii = (torch.stack(rows, 1) for rows in zip(*sizes, strict=True))
        except NotDifferentiableError as error:
            absent["norms"] = absent["radii"] = str(error)
    else:
        absent["f"] = f"{model.name} has no latent map: the encoder alone was looked at"
    protocol = {
        "inputs": n,
        "starts": starts,
        "seed": seed,
        "relative_distance": DISTANCE,
        "pairs_a_point": DIRECTIONS,
    }
    return Contraction(ratios, list(steps), norms, radii, local, distant, absent, protocol).about(model)


def _ratios(model: Autoencoder, n: int, seed: int, batch_size: int) -> dict[str, dict[str, float | None]]:
    """By map that the model has."""

    def latents() -> Iterable[Tensor]:
        return (model.sample_latents(min(batch_size, n - i), seed, i) for i in range(0, n, batch_size))

    found = {}
    if model.has_latent_map:
        found["f"] = std_ratio(model.latent_map, latents())
    if model.image_shape:
        images = noise_images(n, model.image_shape, seed, batch_size)
        found["E"] = std_ratio(model.encode_unchecked, (batch.to(model.device) for batch in images))
    if model.has_decoder:
        found["D"] = std_ratio(model.decode, latents())
    return found


def _summary(values: Tensor) -> dict[str, float | int | None]:
    """Quantiles of what is known, and the share of it below 1."""
    known = values[values == values].double().numpy()
    if not len(known):
        return {"known": 0, "share_below_1": None, **{f"q{round(100 * q)}": None for q in QUANTILES}}
    quantiles = {f"q{round(100 * q)}": float(f"{np.quantile(known, q):.6g}") for q in QUANTILES}
    return {"known": len(known), "share_below_1": float((known < 1).mean()), **quantiles}
