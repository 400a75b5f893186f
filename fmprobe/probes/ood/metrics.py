"""Metrics of how well a score separates out-of-distribution from in-distribution images."""

from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from fmprobe.dynamics.checks import check_seed
from fmprobe.errors import InputError
from fmprobe.seeding import generator

CONVENTION = (
    "in-distribution is the positive class and scores low; fpr95: share of out-of-distribution accepted at the "
    "threshold that accepts 95% of in-distribution; "
    "fpr95_ood_positive: share of in-distribution rejected at the threshold that "
    "rejects 95% of out-of-distribution; aupr_in and aupr_out: average precision with either class as the positive one"
)
METRICS = ("auroc", "fpr95", "fpr95_ood_positive", "aupr_in", "aupr_out")
FEWEST = 2  # scores of either kind
EXACT = 2**53  # the largest integer up to which float64 holds every integer
BLOCK = 2**22  # number of counts held in memory while resampling


def ood_metrics(
    id_scores: Any, ood_scores: Any, *, bootstrap: int = 0, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """AUROC, FPR95 both ways and AUPR both ways of a score that is low for in-distribution images.

    Args:
        id_scores: Scores `(n,)` of in-distribution images, the positive class. Their scale does not matter.
        ood_scores: Scores `(m,)` of out-of-distribution images.
        bootstrap: Number of resamples of both sets; 0 for no intervals.
        confidence: Share of the resamples within an interval.
        seed: Random seed for the resamples.

    Returns:
        The metrics by name, each in [0, 1].
        "auroc": the probability that an in-distribution image scores lower; equal scores count half.
        "fpr95": the share of out-of-distribution images accepted where 95% of the in-distribution images are (Fumero et
        al., ICLR 2026, tab. 1).
        "fpr95_ood_positive": the share of in-distribution images rejected where 95% of the out-of-distribution images
        are (OpenOOD).
        "aupr_in", "aupr_out": the average precision, with in-distribution or out-of-distribution as the positive class.
        "intervals", with `bootstrap`: the percentile interval of each, [low, high].

    Raises:
        InputError: There are fewer than 2 scores of either kind, or scores are not finite or not of shape (n,), or
            `bootstrap` or `confidence` is out of range.
    """
    inside, outside = _scores(id_scores, "id_scores"), _scores(ood_scores, "ood_scores")
    if not isinstance(bootstrap, Real) or bootstrap < 0 or bootstrap % 1 or not 0 < confidence < 1:
        raise InputError(f"bootstrap={bootstrap}, confidence={confidence}: expected a number from 0, one in (0, 1)")
    check_seed(seed)
    # The metrics depend on the ranks in the union of both sets alone, and ranks are exact at any scale.
    levels, rank = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    ins = np.bincount(rank[: len(inside)], minlength=len(levels))
    outs = np.bincount(rank[len(inside) :], minlength=len(levels))
    point = {name: float(value[0]) for name, value in _metrics(ins[None], outs[None]).items()}
    if not bootstrap:
        return point
    resampled = _resample(ins, outs, int(bootstrap), generator(seed, 0, "ood: bootstrap"))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    intervals = {name: np.quantile(resampled[name], tails).tolist() for name in METRICS}
    return {**point, "intervals": intervals}


def _scores(values: Any, name: str) -> np.ndarray:
    """Scores as float64 `(n,)`. Raises InputError where they are none."""
    try:
        array = _numbers(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{name} holds no real numbers ({error}): expected one score an image, (n,)") from error
    if array.ndim != 1:
        raise InputError(f"{name} has shape {array.shape}: expected one score an image, (n,)")
    if len(array) < FEWEST:
        raise InputError(
            f"{name} holds {len(array)} scores: expected at least {FEWEST}, and hundreds for an FPR95 to trust"
        )
    if not np.isfinite(array).all():
        raise InputError(
            f"{name} holds {int((~np.isfinite(array)).sum())} scores that are not finite: remove or replace them"
        )
    return array + 0.0  # -0 becomes 0, which is the same score


def _numbers(values: Any) -> np.ndarray:
    """Real numbers of any type as float64, masked ones as nan. Raises TypeError or ValueError for anything else."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values  # numpy has no bfloat16
    elif isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(np.float64), np.nan)
    array = np.asarray(values)
    if array.dtype == object and all(isinstance(value, Real) for value in array.flat):
        array = array.astype(np.float64)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"they are {array.dtype}")
    if array.dtype.kind in "iu" and array.size and max(int(array.max()), -int(array.min())) > EXACT:
        raise ValueError("they are integers beyond 2^53, which floats do not tell apart")
    return array.astype(np.float64)


def _resample(ins: np.ndarray, outs: np.ndarray, times: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The metrics of `times` resamples of both sets, `(times,)` each; drawn in blocks of bounded memory."""
    block = max(1, BLOCK // len(ins))
    n, m = ins.sum(), outs.sum()
    parts = []
    for first in range(0, times, block):
        size = min(block, times - first)
        parts.append(_metrics(rng.multinomial(n, ins / n, size), rng.multinomial(m, outs / m, size)))
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def _metrics(ins: np.ndarray, outs: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric, `(B,)`, from how many scores have each level, `(B, levels)`, with levels in ascending order."""
    n, m = ins.sum(1), outs.sum(1)
    accepted_in, accepted_out = ins.cumsum(1), outs.cumsum(1)
    below = accepted_in - ins / 2
    rejected_in, rejected_out = ins[:, ::-1].cumsum(1), outs[:, ::-1].cumsum(1)
    return {
        "auroc": (outs * below).sum(1) / (n * m),
        "fpr95": _false_positives(accepted_in, accepted_out) / m,
        "fpr95_ood_positive": _false_positives(rejected_out, rejected_in) / n,
        "aupr_in": _average_precision(ins, accepted_in, accepted_out),
        "aupr_out": _average_precision(outs[:, ::-1], rejected_out, rejected_in),
    }


def _false_positives(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Number of negatives up to the first level that includes 95% of the positives; both counts are cumulative."""
    needed = -(-95 * positives[:, -1] // 100)  # in integers, since no float is exactly 0.95
    first = (positives >= needed[:, None]).argmax(1)
    return np.take_along_axis(negatives, first[:, None], 1)[:, 0]


def _average_precision(found: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """The precision at each level, weighted by the share of the positives `found` there; the others are cumulative."""
    taken = positives + negatives
    precision = positives / np.maximum(taken, 1)
    return (found * precision).sum(1) / positives[:, -1]
