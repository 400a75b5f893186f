"""Verdicts on finished orbits, from the logarithms of their steps alone: rate, distance left, still falling or not.

A history is `(R, samples)`, one row an orbit, sampled every `stride` steps, its last sample being the last step.
"""

import math

import torch
from torch import Tensor

from fmprobe.dynamics.orbits import Rules


def distance_left(history: Tensor, last: Tensor, times: Tensor, rules: Rules) -> Tensor:
    """Remaining steps summed, in units of the step at sample `last`: rho/(1-rho) for a geometric decay, `(R,)`.

    rho is the mean rate over the window before `last`. Where the time constant grows all through the window, as in an
    algebraic decay or when a slow mode emerges, its growth `g` a step is carried on: a step falling like t^(-a) has
    time constant t/a, so g = 1/a, and its tail sums to (time constant)/(1-g) steps; g >= 1 is no convergence at all.
    Inf where fewer than two samples tell the rate, or it does not contract. `times`: the step count of each sample.
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
    """Whether the step was still falling at the end, `(R,)` bool, by tests that stationary noise does not pass.

    `last` `(R,)` is the index of the last sample of each row, which ran out of steps. A fall below `resolution` (of the
    latents' arithmetic, relative) a step is rounding, not a fall.
    """
    falls = torch.zeros_like(last, dtype=torch.bool)
    for length in last.unique().tolist():
        rows = last == length
        logs = history[rows, : length + 1].double()
        falls[rows] = _falls_steadily(logs, resolution, rules) | _medians_fall(logs, resolution, rules)
    return falls


def _falls_steadily(logs: Tensor, resolution: float, rules: Rules) -> Tensor:
    n = logs.shape[1]
    window = min(rules.fall_window, n - 1)
    if window < 8:  # too short to tell a fall from chance
        return torch.zeros(len(logs), dtype=torch.bool, device=logs.device)
    recent = logs[:, -window - 1 :]
    falls = (recent.diff(dim=1) < -resolution).double().mean(1) >= rules.fall_share
    earlier = logs[:, n // 2 : n - window - 1]
    if earlier.shape[1] == 0:
        return falls
    # A laminar phase of an intermittent orbit falls steadily too, but only to where such phases got before.
    return falls & (recent[:, -16:].median(1).values < earlier.min(1).values)


def _medians_fall(logs: Tensor, resolution: float, rules: Rules) -> Tensor:
    quarter = logs.shape[1] // 4
    block = quarter // rules.fall_blocks
    if block < 2:
        return torch.zeros(len(logs), dtype=torch.bool, device=logs.device)
    centres, errors = [], []
    for part in (logs[:, -2 * quarter : -quarter], logs[:, -quarter:]):
        # Successive steps are correlated: block medians are nearly independent, so their scatter gives the error.
        medians = part[:, -block * rules.fall_blocks :].reshape(len(logs), rules.fall_blocks, block).median(2).values
        centre = medians.median(1, keepdim=True).values
        deviation = 1.4826 * (medians - centre).abs().median(1).values
        centres.append(centre[:, 0])
        errors.append(1.2533 * deviation / math.sqrt(rules.fall_blocks))
    fall = centres[0] - centres[1]
    return (fall > rules.fall_sigmas * torch.hypot(*errors)) & (fall > 4 * resolution * quarter)
