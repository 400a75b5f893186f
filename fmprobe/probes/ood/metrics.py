"""How well a score tells out-of-distribution images from in-distribution ones, in stated conventions."""

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
EXACT = 2**53  # integers up to here are floats
BLOCK = 2**22  # counts held at once while resampling


def ood_metrics(
    id_scores: Any, ood_scores: Any, *, bootstrap: int = 0, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """AUROC, FPR95 both ways and AUPR both ways of a score that is LOW for in-distribution, its positive class.

    `id_scores` `(n,)`, `ood_scores` `(m,)`: any scale, since order alone counts; equal scores count half. "fpr95" (as
    in Fumero et al., ICLR 2026, tab. 1) is the share of out-of-distribution accepted where 95% of in-distribution is,
    "fpr95_ood_positive" (as in OpenOOD) the share of in-distribution rejected where 95% of out-of-distribution is. AUPR
    is the average precision, with in-distribution ("aupr_in") or out-of-distribution ("aupr_out") as the class found.
    With `bootstrap` resamples of both sets, "intervals" holds the percentile interval of each at `confidence`.

    Raises InputError for fewer than 2 scores of either kind, scores that are not finite, or not of shape (n,).
    """
    inside, outside = _scores(id_scores, "id_scores"), _scores(ood_scores, "ood_scores")
    if bootstrap < 0 or bootstrap % 1 or not 0 < confidence < 1:
        raise InputError(f"bootstrap={bootstrap}, confidence={confidence}: expected a number from 0, one in (0, 1)")
    check_seed(seed)
    # Ranks of the joint set: exact at any scale, and all that the metrics depend on.
    levels, rank = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    ins = np.bincount(rank[: len(inside)], minlength=len(levels))
    outs = np.bincount(rank[len(inside) :], minlength=len(levels))
    point = {name: float(value[0]) for name, value in _metrics(ins[None], outs[None]).items()}
    if not bootstrap:
        return point
    resampled = _resample(ins, outs, bootstrap, generator(seed, 0, "ood: bootstrap"))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    intervals = {name: np.quantile(resampled[name], tails).tolist() for name in METRICS}
    return {**point, "intervals": intervals}


def _scores(values: Any, name: str) -> np.ndarray:
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
    return array + 0.0  # -0 and 0 are the same score


def _numbers(values: Any) -> np.ndarray:
    """Real numbers of any type as float64, what is masked as nan. Raises TypeError or ValueError for anything else."""
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
    """The metrics of resampled sets, drawn in blocks of bounded memory."""
    block = max(1, BLOCK // len(ins))
    n, m = ins.sum(), outs.sum()
    parts = []
    for first in range(0, times, block):
        size = min(block, times - first)
        parts.append(_metrics(rng.multinomial(n, ins / n, size), rng.multinomial(m, outs / m, size)))
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def _metrics(ins: np.ndarray, outs: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric, `(B,)`, from the numbers of scores at each level, `(B, levels)`, levels rising."""
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
    """Negatives taken at the first level by which 95% of the positives are taken; both cumulative."""
    needed = -(-95 * positives[:, -1] // 100)  # in whole numbers: 0.95 has no exact float
    first = (positives >= needed[:, None]).argmax(1)
    return np.take_along_axis(negatives, first[:, None], 1)[:, 0]


def _average_precision(found: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    taken = positives + negatives
    precision = positives / np.maximum(taken, 1)
    return (found * precision).sum(1) / positives[:, -1]
