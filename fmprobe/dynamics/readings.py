"""Readings: what the orbit of each start does, by its largest Lyapunov exponent, whether it settled or not."""

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from fmprobe.dynamics.attractors import Attractors
from fmprobe.dynamics.calls import Function
from fmprobe.dynamics.checks import check_counts, check_seed
from fmprobe.dynamics.lyapunov import lyapunov_exponents
from fmprobe.dynamics.orbits import Orbits, Status
from fmprobe.seeding import generator

CAP, STEPS = 16, 100  # by default so many orbits are followed on for so many steps
COVERED = 0.9545  # chance that a normal error stays within two standard errors
ROUNDING = 16  # an exponent of so many units of the dtype's precision, a step, may be rounding
FEW = 6  # with fewer exponents than this, their interval is from the least to the largest
RESAMPLES = 1000  # of the bootstrap
CONFIDENCE = 0.95  # of the interval of the median


class Regime(IntEnum):
    """What an orbit does in the long run, as far as it was followed. See `read_orbits` for the rule."""

    SETTLED = 0
    CYCLE = 1
    QUASI_PERIODIC = 2
    CHAOTIC = 3
    STILL_SETTLING = 4
    DIVERGED = 5
    NOT_MEASURED = 6

    @property
    def label(self) -> str:
        """The name as results and pages write it."""
        return {"QUASI_PERIODIC": "quasi-periodic"}.get(self.name, self.name.lower().replace("_", " "))

    @property
    def meaning(self) -> str:
        """One sentence: what the regime says."""
        return _MEANING[self]


JUDGED = (Regime.QUASI_PERIODIC, Regime.CHAOTIC, Regime.STILL_SETTLING)  # by the exponent of an orbit
_MEANING = {
    Regime.SETTLED: "the orbit came to rest; its exponent is the logarithm of the spectral radius where it rests",
    Regime.CYCLE: "the orbit repeats itself with a period of two steps or more; its exponent is that of the cycle",
    Regime.QUASI_PERIODIC: "within the error, neighbouring orbits neither part nor meet: they move on a torus, or "
    "their chaos is too weak for this number of steps",
    Regime.CHAOTIC: "neighbouring orbits part exponentially, so that rounding decides where one of them goes",
    Regime.STILL_SETTLING: "neighbouring orbits meet, so that more steps would end at a fixed point or on a cycle",
    Regime.DIVERGED: "the orbit left every bound, so that it has no exponent",
    Regime.NOT_MEASURED: "the orbit did not come to rest, and only those of the starts before it were followed on",
}


@dataclass(frozen=True)
class Readings:
    """An exponent and a regime for each of n starts, and the regime that most of them share.

    Attributes:
        exponents: the largest Lyapunov exponent of each orbit `(n,)` float64, in nats a step; nan where it is not
            known, -inf where f takes all neighbours to one point.
        standard_errors: their standard errors `(n,)`; nan where an exponent is that of an attractor or is not known.
        regimes: `(n,)`; values of `Regime`.
        followed: the starts `(m,)` whose orbits were followed on.
        together: "chaotic" or "still settling" where most starts that were judged by their exponents are quasi-periodic
            each by its own, but not together; else None. See `read_orbits`.
        method: how their exponents were measured, as `lyapunov_exponents` says; None where none was.
        protocol: numbers of steps, the cap and the seed.
    """

    exponents: Tensor
    standard_errors: Tensor
    regimes: Tensor
    followed: Tensor
    together: Regime | None
    method: str | None
    protocol: dict[str, Any]

    def __len__(self) -> int:
        return len(self.regimes)

    @property
    def read(self) -> int:
        """Number of starts that the summary is over: all before the first that was not measured.

        Starts that settled need no measuring. If all of them counted, but only some of the others, then the share of
        settled starts would come out too large.
        """
        unknown = (self.regimes == Regime.NOT_MEASURED).nonzero()
        return int(unknown[0, 0]) if len(unknown) else len(self)

    @property
    def median(self) -> float:
        """Median of the exponents that are known among the first `read` starts; nan if there is none."""
        known = self._known()
        return float(np.median(known)) if len(known) else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The spread of the median over starts: its 95% percentile interval by the bootstrap, with a fixed seed.

        With fewer than 6 exponents it is the least and the largest of them.
        """
        known = self._known()
        if not len(known):
            return math.nan, math.nan
        if len(known) < FEW:
            return float(known.min()), float(known.max())
        rng = generator(0, 0, "readings: bootstrap")
        medians = [np.median(known[rng.integers(len(known), size=len(known))]) for _ in range(RESAMPLES)]
        # No interpolation, since that of minus infinity is not a number.
        low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf")
        return float(low), float(high)

    @property
    def standard_error(self) -> float:
        """Median of the standard errors of the exponents that were measured; nan if none was."""
        errors = self.standard_errors[self.followed]
        errors = errors[errors.isfinite()].numpy()
        return float(np.median(errors)) if len(errors) else math.nan

    @property
    def regime(self) -> Regime | None:
        """The regime that most of the first `read` starts share; None if there are none.

        One orbit alone may be too short to tell weak chaos from none. Where more of the starts that were judged by
        their exponents are quasi-periodic than chaotic, and than still settling, all of them count as what they are
        by their exponents together: see `together`.
        """
        counts = torch.bincount(self.regimes[: self.read], minlength=len(Regime))
        if self.together is not None:
            counts[list(JUDGED)] = 0
            counts[self.together] = int(self._judged().sum())
        return Regime(int(counts.argmax())) if self.read else None

    @property
    def words(self) -> str:
        """The regime that most starts share, their number, and what their neighbours do: one sentence."""
        regime = self.regime
        if regime is None:
            return "No start has a reading."
        pooled = self.together is not None and regime is self.together
        share = self._judged() if pooled else self.regimes[: self.read] == regime
        exponents = self.exponents[: self.read][share].numpy()
        exponents = exponents[~np.isnan(exponents)]
        said = _DOES[regime].format(verb="is" if int(share.sum()) == 1 else "are")
        said += " by their exponents together, though not each by its own" if pooled else ""
        among = "" if self.read == len(self) else "first "
        return f"{int(share.sum())} of the {among}{self.read} starts {said}{_factor(regime, exponents)}."

    def counts(self) -> dict[str, int]:
        """Number of starts by the label of the regime, zeros included."""
        return {regime.label: int((self.regimes == regime).sum()) for regime in Regime}

    def to_dict(self) -> dict[str, Any]:
        """The summary that `results.json` keeps. Numbers that are not finite become None."""
        return {
            "median": finite(self.median),
            "interval": [finite(bound) for bound in self.interval],
            "standard_error": finite(self.standard_error),
            "regime": None if self.regime is None else self.regime.label,
            "words": self.words,
            "regimes": self.counts(),
            "read": self.read,
            "measured": len(self.followed),
            "steps": self.protocol["steps"],
            "burn_in": self.protocol["burn_in"],
            "method": self.method,
        }

    def _judged(self) -> Tensor:
        """Mask of the first `read` starts whose regime was judged by their exponents."""
        return torch.isin(self.regimes[: self.read], torch.tensor(JUDGED))

    def _known(self) -> np.ndarray:
        """The exponents among the first `read` starts, those that are nan left out."""
        known = self.exponents[: self.read].numpy()
        return known[~np.isnan(known)]


_DOES = {
    Regime.SETTLED: "settled",
    Regime.CYCLE: "{verb} on a cycle",
    Regime.QUASI_PERIODIC: "{verb} quasi-periodic: neighbouring orbits neither part nor meet, within the error",
    Regime.CHAOTIC: "{verb} chaotic",
    Regime.STILL_SETTLING: "{verb} still settling",
    Regime.DIVERGED: "diverged",
}


def _factor(regime: Regime, exponents: np.ndarray) -> str:
    """By which factor neighbouring orbits part or meet in a step, where the exponents of a regime say so."""
    if not len(exponents) or regime is Regime.QUASI_PERIODIC:
        return ""
    median = float(np.median(exponents))
    if f"{math.exp(median):.3g}" == "1":
        return ": neighbouring orbits keep their distance"
    verb = "part" if median > 0 else "approach each other"
    return f": neighbouring orbits {verb} by a factor of {math.exp(median):.3g} a step"


def read_orbits(
    f: Any,
    attractors: Attractors,
    *,
    cap: int = CAP,
    steps: int = STEPS,
    burn_in: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    method: str | None = None,
    progress: bool | None = None,
) -> Readings:
    """Give each start of a search a reading: a Lyapunov exponent in nats a step, its standard error, and a regime.

    The rule, by the status of the orbit:

    - CONVERGED is "settled". The exponent is the logarithm of the spectral radius of its attractor. It is nan where the
      radius is not known or the start belongs to no attractor, and -inf at radius 0. No error is given.
    - CYCLE is "cycle". The exponent is measured on from the orbit's end, over a whole number of periods. It is nan
      where a period is longer than `steps`.
    - DIVERGED is "diverged", and has no exponent.
    - SLOW and WANDERING are measured on from the end. Such an orbit is "chaotic" if its exponent lies above 0 by more
      than the error, "still settling" if it lies below 0 by more, and else "quasi-periodic". It is "diverged" if it
      does not stay finite.

    The error is two standard errors where they are known exactly. Here they are estimated from few batch means, so the
    factor is Student's t quantile for their number in place of 2, of the same coverage (95.45%): 3.3 for 20 steps, 2.3
    for 100. Two limits of a finite orbit are added. Rounding may give an exponent of 16 units of the dtype's precision.
    On tori that turn at different rates neighbouring orbits part in proportion to time, without chaos. A tangent that
    has run against this shear for half the burn-in then gains log(1 + 2 steps / burn_in) / steps, and an orbit must
    exceed that too to be called chaotic.

    Where more starts are quasi-periodic by this rule than chaotic, and than still settling, these three kinds are
    judged together as well, since one orbit alone may be too short to tell. Their mean exponent must differ from 0 by
    more than its error, as above but from all their batch means together, and more than half of the exponents must lie
    on that side of 0 by their own standard error. `Readings.regime` and `Readings.words` use that. The regime of each
    start stays as it is.

    The first `cap` starts by number whose orbits need measuring are followed on. The others are "not measured". What is
    read of a start depends on neither batch size nor the number of processes, up to rounding.

    Args:
        f: the map on a batch of latents, or a model with a latent map.
        attractors: what `find_attractors` found with f.
        cap: largest number of orbits that are followed on.
        steps: number of steps that are averaged over.
        burn_in: number of steps before them, in which tangents turn to the direction that grows most; by default half
            the number of steps.
        batch_size: largest number of latents in one call of f.
        seed: seed of the first tangents.
        method: how exponents are measured, as `lyapunov_exponents` takes it.
        progress: whether to show a progress bar; None shows one on a terminal, and lines elsewhere.

    Raises:
        ValueError: a setting makes no sense, or the attractors are something else.
    """
    if not isinstance(attractors, Attractors):
        raise ValueError(f"attractors must be what find_attractors returns, got a {type(attractors).__name__}")
    check_counts(0, cap=cap)
    check_counts(4, steps=steps)
    burn_in = max(1, int(steps) // 2) if burn_in is None else burn_in
    check_counts(1, burn_in=burn_in)
    check_counts(batch_size=batch_size)
    check_seed(seed)
    orbits, status = attractors.orbits, attractors.orbits.status.cpu()
    exponents = _at_rest(attractors)
    errors = torch.full_like(exponents, torch.nan)
    regimes = torch.full_like(status, int(Regime.NOT_MEASURED), dtype=torch.long)
    regimes[status == Status.CONVERGED] = Regime.SETTLED
    regimes[status == Status.DIVERGED] = Regime.DIVERGED
    followed, used = (regimes == Regime.NOT_MEASURED).nonzero()[:cap, 0], None
    if len(followed):
        function: Function = getattr(f, "latent_map", f)
        ends = orbits.ends[followed.to(orbits.ends.device)].to(getattr(f, "device", orbits.ends.device))
        rule = {"steps": steps, "burn_in": burn_in, "batch_size": batch_size, "seed": seed}
        found = lyapunov_exponents(function, ends, method=method, progress=progress, **rule)
        used, growth = found.method, found.growth[:, :, 0]
        values, spreads = found.values[:, 0].clone(), found.standard_errors[:, 0].clone()
        _over_periods(values, spreads, growth, orbits, followed)
        exponents[followed], errors[followed] = values, spreads
        judged = _regimes(values, _limits(spreads, ends.dtype, steps, burn_in))
        cyclic = (status[followed] == Status.CYCLE) & (judged != Regime.DIVERGED)
        regimes[followed] = torch.where(cyclic, int(Regime.CYCLE), judged)
        unended = followed[orbits.periods.cpu()[followed] > steps]
        exponents[unended] = errors[unended] = torch.nan  # a part of a period says nothing of the whole
    protocol = {"steps": steps, "burn_in": burn_in, "cap": cap, "seed": seed}
    readings = Readings(exponents, errors, regimes, followed, None, used, protocol)
    return replace(readings, together=_together(readings, orbits.ends.dtype))


def _at_rest(attractors: Attractors) -> Tensor:
    """The exponent of each start whose attractor has a known radius `(n,)`, else nan."""
    labels = attractors.labels.cpu()
    radius = torch.cat([attractors.spectral_radius.cpu().double(), torch.tensor([torch.nan], dtype=torch.float64)])
    return radius[labels].log()  # the label -1 takes the last, which is nan


def _over_periods(values: Tensor, errors: Tensor, growth: Tensor, orbits: Orbits, rows: Tensor) -> None:
    """Overwrite the exponents of cycles by means over whole periods, which do not depend on where the steps end."""
    for place, period in enumerate(orbits.periods.cpu()[rows].tolist()):
        if times := len(growth) // period if period else 0:
            means = growth[-times * period :, place].reshape(times, period).mean(1)
            values[place] = means.mean()
            errors[place] = (means.var() / times).sqrt() if times > 1 else torch.nan


def _limits(errors: Tensor, dtype: torch.dtype, steps: int, burn_in: int, orbits: int = 1) -> tuple[Tensor, Tensor]:
    """Below the negative of the first, orbits meet; above the second they part: the error and the limits of the rule.

    Args:
        errors: standard errors of exponents.
        dtype: the dtype of the latents.
        steps: number of steps that were averaged over.
        burn_in: number of steps before them.
        orbits: number of orbits that an exponent is the mean of.
    """
    free = orbits * (max(2, int(steps**0.5)) - 1)  # batch means of `lyapunov_exponents`, less a mean each
    spread = float(stdtrit(free, (1 + COVERED) / 2)) * errors + ROUNDING * torch.finfo(dtype).eps
    return spread, spread + math.log1p(2 * steps / burn_in) / steps


def _regimes(values: Tensor, limits: tuple[Tensor, Tensor]) -> Tensor:
    """The regimes of orbits by their exponents, by the rule of `read_orbits`."""
    found = torch.full(values.shape, int(Regime.QUASI_PERIODIC))
    found[values > limits[1]] = Regime.CHAOTIC
    found[values < -limits[0]] = Regime.STILL_SETTLING
    found[values == -torch.inf] = Regime.STILL_SETTLING  # whose error is not a number
    found[values.isnan()] = Regime.DIVERGED
    return found


def _together(readings: Readings, dtype: torch.dtype) -> Regime | None:
    """What the orbits that were judged by their exponents are together, where that is more than most are alone."""
    regimes = readings.regimes[: readings.read]
    judged = readings._judged() & readings.exponents[: readings.read].isfinite()
    counts = torch.bincount(regimes, minlength=len(Regime))
    if int(judged.sum()) < 2 or counts[list(JUDGED)].argmax() != 0:
        return None
    values, errors = readings.exponents[: readings.read][judged], readings.standard_errors[: readings.read][judged]
    mean, error = values.mean()[None], (errors.square().sum().sqrt() / len(values))[None]
    steps, burn_in = readings.protocol["steps"], readings.protocol["burn_in"]
    found = Regime(int(_regimes(mean, _limits(error, dtype, steps, burn_in, len(values)))[0]))
    beyond = (values if found is Regime.CHAOTIC else -values) > errors
    return found if found is not Regime.QUASI_PERIODIC and 2 * int(beyond.sum()) > len(values) else None


def finite(value: float) -> float | None:
    """The value as JSON holds it: None where it is not finite."""
    return value if math.isfinite(value) else None
