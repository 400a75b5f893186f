"""What a diagram over capacity says, by rules that its docstrings state, and in words."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fmprobe.dynamics.readings import Regime
from fmprobe.probes.capacity.diagram import NULL, A, Agreement, B, Point

APART = 3.0  # standard errors between the encoder and the null that count as a difference


@dataclass(frozen=True)
class CapacityReading:
    """What two disjoint sets of images share, and what random weights show as well.

    A finding is the encoder's where surrogates from disjoint images share it and the null does not.

    Attributes:
        tried_to: largest number of principal components that was tried.
        settles_to: largest k at which at least 90% of the starts settle in A and in B; None if there is none.
        chaos_from: smallest k from which on A and B are chaotic at every k of the diagram; None if there is none.
        null_settles_to: as `settles_to`, of the null; None also without a null.
        null_chaos_from: as `chaos_from`, of the null.
        full: regime of A and of B with all features where they share it, else None.
        full_null: regime of the null with all features; None without a null.
        exponent: mean of the exponents of A and B with all features; None where one is not known.
        null_exponent: exponent of the null with all features.
        error: standard error of `exponent`: the larger of half the difference of A and B, which is the choice of
            images, and their own standard errors together. Each of these is the larger of the standard error of an
            orbit and a quarter of the interval over starts.
        apart: difference of `exponent` and `null_exponent` over their standard errors together.
        shared: whether A and B have the same regime with all features.
        of_the_encoder: whether the finding with all features is the encoder's: `paints` holds, A and B share it, and
            the null lies more than 3 standard errors away (another regime suffices where an exponent is not known).
            Near the border of two regimes a null of another regime may lie close by. None without a null.
        differs: whether the null lies so far away, whatever the surrogates paint; None without a null.
        matched_at: largest k up to `settles_to` at which all attractors of A and B match one to one; None if none.
        paints: whether both decoders of all features have a smaller L1 error on held-out images than the median colour.
    """

    tried_to: int
    settles_to: int | None
    chaos_from: int | None
    null_settles_to: int | None
    null_chaos_from: int | None
    full: str | None
    full_null: str | None
    exponent: float | None
    null_exponent: float | None
    error: float | None
    apart: float | None
    shared: bool
    of_the_encoder: bool | None
    differs: bool | None
    matched_at: int | None
    paints: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the sentences."""
        return {**asdict(self), "sentence": self.sentence, "surrogate": self.surrogate}

    @property
    def sentence(self) -> str:
        """What was found, in words that do not depend on small differences of the figures."""
        if not self.paints:
            return (
                "With all features, the surrogates paint worse than each image's own median colour, so what orbits do "
                "is not known to be a finding on the encoder's weights."
            )
        if not self.shared:
            return (
                "With all features, surrogates from two disjoint sets of images do not share a regime, so what orbits "
                "do is the surrogate's."
            )
        found = f"With all features, the latent map is {_is(self.full)} in both sets of images"
        if self.full_null is None:
            return f"{found}. There is no null to compare with."
        if self.of_the_encoder:
            other = "not so" if self.full_null != self.full else f"{_is(self.full_null)} too, but at another rate,"
            return f"{found}, and {other} under random weights: this is a finding on the encoder's weights."
        alike = "under random weights as well" if self.full_null == self.full else "random weights lie too near"
        return f"{found}, and {alike}: this is not a finding on the encoder's weights."

    @property
    def surrogate(self) -> str:
        """Up to which number of components orbits settle, and whether the attractors are the encoder's."""
        if not self.paints:
            return "Up to which number of principal components orbits settle, and where, is the surrogates' as well."
        if self.settles_to is None:
            return "At no number of components do orbits settle in both sets of images."
        up_to = f"Orbits settle in both sets of images when a latent keeps up to {self.settles_to} principal components"
        up_to += ", the most that were tried" if self.settles_to == self.tried_to else ""
        if self.matched_at is not None:
            return f"{up_to}, and up to {self.matched_at} the attractors of both sets are the same."
        return f"{up_to}. The attractors of the two sets are not the same, so where they lie is the surrogate's."


def read_capacity(points: Sequence[Point], agreements: Sequence[Agreement]) -> CapacityReading:
    """Read a diagram by the rules that `CapacityReading` states."""
    full = {point.set: point for point in points if point.form == "ridge"}
    a, b, null = full[A], full[B], full.get(NULL)
    settles_to, settled_null = _settles_to(points, A, B), _settles_to(points, NULL)
    shared = a.regime == b.regime
    mean, error = _mean(a, b)
    apart = None
    if null is not None and mean is not None and error is not None and null.exponent is not None:
        spread, difference = math.hypot(error, _error(null)), mean - null.exponent
        apart = difference / spread if spread else math.copysign(math.inf, difference) if difference else 0.0
    differs = None
    if null is not None:
        differs = null.regime != a.regime if apart is None else abs(apart) > APART
    paints = all(point.l1 < point.l1_median for point in (a, b))
    matched = [one.k for one in agreements if one.all_match and settles_to is not None and one.k <= settles_to]
    return CapacityReading(
        tried_to=max((point.k for point in points if point.form == "bottleneck"), default=a.k),
        settles_to=settles_to,
        chaos_from=_chaos_from(points, A, B),
        null_settles_to=settled_null,
        null_chaos_from=_chaos_from(points, NULL),
        full=a.regime if shared else None,
        full_null=None if null is None else null.regime,
        exponent=mean,
        null_exponent=None if null is None else null.exponent,
        error=error,
        apart=apart,
        shared=shared,
        of_the_encoder=None if differs is None else shared and differs and paints,
        differs=differs,
        matched_at=max(matched, default=None),
        paints=paints,
    )


def _mean(a: Point, b: Point) -> tuple[float | None, float | None]:
    """The mean of two exponents and its standard error."""
    if a.exponent is None or b.exponent is None:
        return None, None
    own = math.hypot(_error(a), _error(b)) / 2
    return (a.exponent + b.exponent) / 2, max(abs(a.exponent - b.exponent) / 2, own)


def _error(point: Point) -> float:
    """The standard error of a point's exponent: of one orbit, or over the starts, whichever is larger.

    The interval over starts is one of 95% or, with few starts, from the least to the largest. A quarter of it is near
    the standard error in both cases.
    """
    low, high = point.interval
    return max(point.standard_error or 0.0, 0.0 if low is None or high is None else (high - low) / 4)


def _by_k(points: Sequence[Point], sets: Sequence[str]) -> list[tuple[int, list[Point]]]:
    """The points of some sets by their number of principal components, ascending, where all of the sets have one."""
    points = [point for point in points if point.form == "bottleneck" and point.set in sets]
    found = [(k, [point for point in points if point.k == k]) for k in sorted({point.k for point in points})]
    return [(k, there) for k, there in found if len(there) == len(sets)]


def _settles_to(points: Sequence[Point], *sets: str) -> int | None:
    return max((k for k, there in _by_k(points, sets) if all(one.settles for one in there)), default=None)


def _chaos_from(points: Sequence[Point], *sets: str) -> int | None:
    start = None
    for k, there in _by_k(points, sets):
        chaotic = all(one.regime == Regime.CHAOTIC.label for one in there)
        start = (start or k) if chaotic else None
    return start


def _is(regime: str | None) -> str:
    """A regime as a property of a map."""
    return {"settled": "settling", "cycle": "periodic", "diverged": "divergent", None: "without a reading"}.get(
        regime, str(regime)
    )
