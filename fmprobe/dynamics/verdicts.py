"""Verdicts on finished orbits from the logarithms of their steps alone: their rate, and whether they were still
falling.

A history is `(R, samples)`, one row an orbit, sampled every `stride` steps. Its last sample is the last step.
"""

import math

import torch
from torch import Tensor

from fmprobe.dynamics.orbits import Rules

FEWEST_BLOCKS = 5  # of steps, in a quarter of an orbit
LEAST_QUARTER = 6  # steps: two such quarters of independent steps are in order once in 924 times


def distance_left(history: Tensor, last: Tensor, times: Tensor, rules: Rules) -> Tensor:
    """Sum of the remaining steps, in units of the step at sample `last`, `(R,)`: rho/(1-rho) for a geometric decay.

    rho is the mean rate over the window before `last`. The time constant may grow all through the window, as in an
    algebraic decay or when a slow mode emerges. Then its growth `g` a step is extrapolated: a step falling like t^(-a)
    has time constant t/a, so g = 1/a, and its tail sums to (time constant)/(1-g) steps. For g >= 1 the orbit does not
    converge.

    Args:
        history: logarithms of the steps `(R, samples)`.
        last: index `(R,)` of the last sample to use.
        times: number of steps `(R, samples)` at each sample.
        rules: thresholds of the verdicts.

    Returns:
        The sums `(R,)`; inf where fewer than two samples show the rate, or the rate does not contract.
    """
    width = last.clamp(max=rules.rate_window)
    quarters = torch.stack([last - (width * (4 - j)) // 4 for j in range(5)], dim=1).clamp(min=0)
    logs, at = history.gather(1, quarters).double(), times.gather(1, quarters).double()
    decay = (logs[:, 0] - logs[:, -1]) / (at[:, -1] - at[:, 0])
    left = torch.where(decay > 0, 1 / torch.expm1(decay), math.inf)

    spans = at.diff(dim=1)
    constants = spans / -logs.diff(dim=1)
    growing = (width >= 8) & (constants > 0).all(1) & (constants.diff(dim=1) > 0).all(1)
    centres = (at[:, 1:] + at[:, :-1]) / 2
    growth = (constants[:, -1] - constants[:, 0]) / (centres[:, -1] - centres[:, 0])
    constant_now = constants[:, -1] + growth * (at[:, -1] - centres[:, -1])
    carried = torch.where(growth < 1, 1 / torch.expm1(1 / constant_now) / (1 - growth), math.inf)
    return torch.where(growing, torch.maximum(left, carried), left).nan_to_num(nan=math.inf, posinf=math.inf)


def still_falling(history: Tensor, last: Tensor, resolution: float, rules: Rules) -> Tensor:
    """Tell whether the step was still falling at the end, `(R,)` bool, by tests that stationary noise does not pass.

    Args:
        history: logarithms of the steps `(R, samples)`, of orbits that ran out of steps.
        last: index `(R,)` of the last sample of each row.
        resolution: relative resolution of the latents' arithmetic. A smaller fall a step is rounding.
        rules: thresholds of the verdicts.
    """
    falls = torch.zeros_like(last, dtype=torch.bool)
    for length in last.unique().tolist():
        rows = last == length
        logs = history[rows, : length + 1].double()
        steadily, apart = _falls_steadily(logs, resolution, rules), _falls_apart(logs)
        falls[rows] = steadily | apart | _medians_fall(logs, resolution, rules)
    return falls


def _falls_steadily(logs: Tensor, resolution: float, rules: Rules) -> Tensor:
    n = logs.shape[1]
    window = min(rules.fall_window, n - 1)
    if window < 8:  # this is too short to tell a fall from chance
        return torch.zeros(len(logs), dtype=torch.bool, device=logs.device)
    recent = logs[:, -window - 1 :]
    falls = (recent.diff(dim=1) < -resolution).double().mean(1) >= rules.fall_share
    earlier = logs[:, n // 2 : n - window - 1]
    if earlier.shape[1] == 0:
        return falls
    # In a laminar phase of an intermittent orbit the steps fall steadily too, but no lower than in earlier phases.
    return falls & (recent[:, -16:].median(1).values < earlier.min(1).values)


def _falls_apart(logs: Tensor) -> Tensor:
    """Whether every step of the last quarter is less than half of every step of the second, which shows a fall that
    swings, as on a spiral, in an orbit too short for the test of medians.
    """
    quarter = logs.shape[1] // 4
    if quarter < LEAST_QUARTER:  # noise is in such order too often
        return torch.zeros(len(logs), dtype=torch.bool, device=logs.device)
    return logs[:, -quarter:].amax(1) < logs[:, quarter : 2 * quarter].amin(1) - math.log(2)


def _medians_fall(logs: Tensor, resolution: float, rules: Rules) -> Tensor:
    quarter = logs.shape[1] // 4
    blocks = min(rules.fall_blocks, quarter // 2)
    if blocks < FEWEST_BLOCKS:
        return torch.zeros(len(logs), dtype=torch.bool, device=logs.device)
    block = quarter // blocks
    centres, errors = [], []
    for part in (logs[:, -2 * quarter : -quarter], logs[:, -quarter:]):
        # Successive steps are correlated. Block medians are nearly independent, so their scatter gives the error.
        medians = part[:, -block * blocks :].reshape(len(logs), blocks, block).median(2).values
        centre = medians.median(1, keepdim=True).values
        deviation = 1.4826 * (medians - centre).abs().median(1).values
        centres.append(centre[:, 0])
        errors.append(1.2533 * deviation / math.sqrt(blocks))
    fall = centres[0] - centres[1]
    sigmas = rules.fall_sigmas * rules.fall_blocks / blocks  # few blocks say less of their own scatter
    return (fall > sigmas * torch.hypot(*errors)) & (fall > 4 * resolution * quarter)
