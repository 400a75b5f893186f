"""Rules by which figures of many runs agree with a published claim or do not. Each is written before its runs.

A rule takes rows, one for each network or start, and gives a verdict with the figures that it rests on. Rows may fall
into groups, such as data sets, which are judged one by one: the claim agrees in part where some groups agree.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.stats import binomtest, bootstrap, rankdata

from fmprobe.seeding import generator
from fmprobe.tables import number

AGREES, IN_PART, DOES_NOT, CANNOT_TELL, NOT_RUN = "agrees", "in part", "does not", "cannot tell", "not run"
LEVEL = 0.05  # of every test; intervals hold 1 - LEVEL
FEWEST = 8  # points below which a bootstrap interval is not trusted
CLEAR = 0.5  # rank correlation from which a trend is one that a figure shows
RESAMPLES = 20_000  # so many that an interval hardly hangs on the stream that draws them

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        verdict: "agrees", "in part", "does not" or "cannot tell"; "not run" where there are no rows.
        text: the figures behind it, with their number and interval.
    """

    verdict: str
    text: str


class Rule(Protocol):
    """A rule of agreement."""

    @property
    def words(self) -> str:
        """The rule as a sentence."""
        ...

    def __call__(self, rows: Sequence[Row]) -> Finding:
        """The finding of rows."""
        ...


@dataclass(frozen=True)
class RankCorrelation:
    """Whether y rises (`sign` 1) or falls (-1) with x over rows, by Spearman's correlation.

    It agrees where the 95% interval excludes 0 and reaches 0.5 in the direction of the claim, and in part where it only
    excludes 0. It does not where it does neither. With fewer than 8 rows one cannot tell.
    """

    x: str
    y: str
    sign: int
    by: str | None = None

    @property
    def words(self) -> str:
        trend = "rises" if self.sign > 0 else "falls"
        return f'"{self.y}" {trend} with "{self.x}"{_each(self.by)}: rank correlation.'

    def __call__(self, rows: Sequence[Row]) -> Finding:
        return _by_group(self.by, rows, self._one)

    def _one(self, rows: Sequence[Row]) -> Finding:
        x, y = (np.array([_value(row.get(name)) for row in rows], dtype=float) for name in (self.x, self.y))
        known = np.isfinite(x) & np.isfinite(y)
        x, y = x[known], y[known]
        count = f"n = {len(x)}"
        if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return Finding(CANNOT_TELL, f"no correlation without spread, {count}")
        found, (low, high) = spearman(x, y), _interval(spearman, (x, y))
        text = f"correlation {found:.2f} ({low:.2f} to {high:.2f}), {count}"
        if len(x) < FEWEST:
            return Finding(CANNOT_TELL, text)
        nearest, farthest = sorted((self.sign * low, self.sign * high))
        if nearest > 0:
            return Finding(AGREES if farthest >= CLEAR else IN_PART, text)
        return Finding(DOES_NOT if farthest < CLEAR else CANNOT_TELL, text)


@dataclass(frozen=True)
class SignTest:
    """Whether a figure is positive for more than half of the rows. Rows where it is 0 do not count.

    It agrees where a one-sided binomial test says so at 5%, does not where it says that of less than half, and
    otherwise one cannot tell. With fewer than 5 rows no test can.
    """

    column: str
    by: str | None = None

    @property
    def words(self) -> str:
        return f'"{self.column}" is positive for more than half of the rows{_each(self.by)}: sign test.'

    def __call__(self, rows: Sequence[Row]) -> Finding:
        return _by_group(self.by, rows, self._one)

    def _one(self, rows: Sequence[Row]) -> Finding:
        known = [value for row in rows if math.isfinite(value := _value(row.get(self.column)))]
        tested = [value > 0 for value in known if value]
        found = _binomial(sum(tested), len(tested), 0.5, "positive")
        middle = f"median {number(float(np.median(known)), '.3g')}, " if known else ""
        return Finding(found.verdict, middle + found.text)


@dataclass(frozen=True)
class Share:
    """Whether something holds for more than a share of the units: a unit is a row, or all rows alike in `unit`.

    It agrees where a one-sided binomial test says so at 5%, does not where it says that of less than this share, and
    otherwise one cannot tell.
    """

    column: str
    by: str | None = None
    unit: str | None = None
    more_than: float = 0.5

    @property
    def words(self) -> str:
        share, unit = "half" if self.more_than == 0.5 else f"{self.more_than:.0%}", self.unit or "row"
        return f'"{self.column}" holds for more than {share} of the {unit}s{_each(self.by)}: binomial test.'

    def __call__(self, rows: Sequence[Row]) -> Finding:
        return _by_group(self.by, rows, self._one)

    def _one(self, rows: Sequence[Row]) -> Finding:
        units: dict[Any, bool] = {}
        for i, row in enumerate(rows):
            if (holds := row.get(self.column)) is not None:
                key = row[self.unit] if self.unit else i
                units[key] = units.get(key, True) and bool(holds)
        return _binomial(sum(units.values()), len(units), self.more_than, "hold")


@dataclass(frozen=True)
class Mean:
    """Whether the mean of a figure over the rows lies between two bounds, by a bootstrap interval.

    It agrees where the 95% interval lies inside, does not where it lies outside, and otherwise one cannot tell, as with
    fewer than 8 rows.
    """

    column: str
    low: float
    high: float
    by: str | None = None

    @property
    def words(self) -> str:
        return (
            f'The mean of "{self.column}" lies from {self.low:g} to {self.high:g}{_each(self.by)}: bootstrap interval.'
        )

    def __call__(self, rows: Sequence[Row]) -> Finding:
        return _by_group(self.by, rows, self._one)

    def _one(self, rows: Sequence[Row]) -> Finding:
        known = np.array([value for row in rows if math.isfinite(value := _value(row.get(self.column)))])
        if len(known) < 2:
            return Finding(CANNOT_TELL, f"n = {len(known)}")
        low, high = _interval(np.mean, (known,))
        text = f"mean {known.mean():.2f} ({low:.2f} to {high:.2f}), n = {len(known)}"
        if len(known) >= FEWEST and self.low <= low and high <= self.high:
            return Finding(AGREES, text)
        outside = high < self.low or low > self.high
        return Finding(DOES_NOT if len(known) >= FEWEST and outside else CANNOT_TELL, text)


def spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> Any:
    """Spearman's correlation along an axis, as `scipy.stats.spearmanr`, of many resamples at once; 0 without spread."""
    x, y = (rankdata(values, axis=axis) for values in (x, y))
    x, y = (values - values.mean(axis=axis, keepdims=True) for values in (x, y))
    spread = np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))
    return (x * y).sum(axis=axis) / np.where(spread > 0, spread, np.inf)


def combined(verdicts: Iterable[str]) -> str:
    """The verdict of several groups: that of all, in part where some agree, and otherwise what the doubtful allow."""
    found = set(verdicts)
    if len(found) == 1:
        return found.pop()
    if found & {AGREES, IN_PART}:
        return IN_PART
    return DOES_NOT if DOES_NOT in found else CANNOT_TELL


def _by_group(by: str | None, rows: Sequence[Row], one: Callable[[Sequence[Row]], Finding]) -> Finding:
    if not rows:
        return Finding(NOT_RUN, "–")
    if by is None:
        return one(rows)
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[by], []).append(row)
    found = {name: one(members) for name, members in groups.items()}
    text = "; ".join(f"{name}: {finding.text}" for name, finding in found.items())
    return Finding(combined(finding.verdict for finding in found.values()), text)


def _binomial(count: int, total: int, expected: float, word: str) -> Finding:
    """Whether the share of `count` of `total` is above the expected one, below it, or neither can be told."""
    if not total:
        return Finding(CANNOT_TELL, "n = 0")
    interval = binomtest(count, total).proportion_ci(1 - LEVEL)
    text = f"{count} of {total} {word} ({interval.low:.0%} to {interval.high:.0%})"
    for verdict, side in ((AGREES, "greater"), (DOES_NOT, "less")):
        if binomtest(count, total, expected, side).pvalue < LEVEL:
            return Finding(verdict, text)
    return Finding(CANNOT_TELL, text)


def _interval(statistic: Callable[..., Any], samples: tuple[np.ndarray, ...]) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic over rows. The same rows give the same interval."""
    found = bootstrap(
        samples,
        statistic,
        paired=len(samples) > 1,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=1 - LEVEL,
        method="percentile",
        rng=generator(0, 0, "evidence: resamples"),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _value(value: Any) -> float:
    return math.nan if value is None else float(value)


def _each(by: str | None) -> str:
    return f', for each of "{by}" alone' if by else ""
