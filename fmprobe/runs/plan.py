"""Plans: how many starts and steps a run takes, so that it fits the device and a reasonable time."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.iterate import free_memory
from fmprobe.dynamics.protocols import FOR_DEVICE, FOUNDATION, Protocol
from fmprobe.errors import InputError
from fmprobe.progress import duration

ROWS = 8  # number of latents that the cost of f is measured with
TYPICAL_STEPS = 100  # typical number of steps of an orbit, for the estimate before a run
STABILITY_COST = 300  # approximate cost of the Jacobian of one attractor, in evaluations of f
FEWEST_STEPS = 20  # least number of steps that a time budget leaves on a CPU


@dataclass(frozen=True)
class Plan:
    """What a search for attractors will do. By default orbits end by the paper's rule for foundation models (sec. 4).

    Attributes:
        n: number of starts from N(0, I).
        max_steps: largest number of steps of an orbit.
        tol: tolerance at which an orbit has converged.
        measure: measure of a step.
        name: what the results call the stopping rule.
        batch_size: largest number of latents in one call of f.
        merge: measure by which two ends are compared.
        merge_threshold: distance within which two ends are one attractor, as in `find_attractors`.
        seed: seed of the starts.
        stability_cap: largest number of attractors whose Jacobian is examined.
        polish: as in `find_attractors`.
        seconds_per_row: measured cost of f, in seconds per latent.
    """

    n: int
    max_steps: int = FOUNDATION.max_steps
    tol: float = FOUNDATION.tol
    measure: str = FOUNDATION.measure
    name: str = "as given"
    batch_size: int = 256
    merge: str = "relative"
    merge_threshold: float | None = None
    seed: int = 0
    stability_cap: int = 64
    polish: str | None = None
    seconds_per_row: float = 0.0

    def __str__(self) -> str:
        likely = self.n * min(TYPICAL_STEPS, self.max_steps) * self.seconds_per_row
        most = self.n * self.max_steps * self.seconds_per_row
        return (
            f"{self.n} starts from N(0, I), at most {self.max_steps} steps of {1000 * self.seconds_per_row:.1f} ms: "
            f"about {duration(likely)}, at most {duration(most)}, then the Jacobians"
        )

    @property
    def rule(self) -> dict[str, Any]:
        """The stopping rule as `iterate` takes it."""
        return {"tol": self.tol, "measure": self.measure, "max_steps": self.max_steps}


@dataclass(frozen=True)
class Cost:
    """What one latent costs in a call of f, and the batch size that fits the device.

    Attributes:
        seconds: time of f, in seconds per latent.
        batch_size: 256 on an accelerator; on a CPU at most 32, and no more than fits into half the free memory.
    """

    seconds: float
    batch_size: int


def measured_cost(model: Autoencoder, rows: int = ROWS) -> Cost:
    """Measure the time and memory of f on `rows` latents from N(0, I).

    Raises:
        InputError: the first step from N(0, I) has no finite value.
    """
    before = _peak_memory()
    seconds = _seconds_per_row(model, rows)
    if model.device.type != "cpu":
        return Cost(seconds, 256)
    grown = max(1, (_peak_memory() - before) // rows)
    return Cost(seconds, max(1, min(32, free_memory() // (2 * grown))))


def make_plan(model: Autoencoder, n: int | None = None, max_steps: int | None = None, **settings: Any) -> Plan:
    """Make a plan that fits the device.

    What is None is chosen so that a run on a CPU takes minutes and half the free memory. Orbits end by the model's
    protocol, or after fewer steps if a CPU requires it.

    Args:
        model: the model whose latent map is iterated.
        n: number of starts.
        max_steps: largest number of steps of an orbit.
        settings: further fields of `Plan`; those that are None keep their defaults.

    Raises:
        InputError: the first step from N(0, I) has no finite value.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    accelerated = model.device.type != "cpu"
    cost = measured_cost(model, min(ROWS, settings.get("batch_size", ROWS)))
    settings.setdefault("batch_size", cost.batch_size)
    if n is None:
        affordable = int(60 / (TYPICAL_STEPS * cost.seconds)) // 8 * 8
        n = 512 if accelerated else min(64, max(16, affordable))
    rule = model.protocol.chosen(settings.pop("tol", None), settings.pop("measure", None), max_steps)
    if not accelerated:
        if max_steps is None:
            rule["max_steps"] = min(rule["max_steps"], max(100, int(150 / (n * cost.seconds))))
        settings["stability_cap"] = min(64, max(2, int(60 / (STABILITY_COST * cost.seconds))))
    name = model.protocol.named(**rule, reason=FOR_DEVICE if max_steps is None else "")
    return Plan(n=n, name=name, seconds_per_row=cost.seconds, **rule, **settings)


def affordable_steps(most: int, seconds: float, cost: float, device: torch.device) -> int:
    """Number of steps of `cost` seconds each that fit into `seconds` on a CPU, from FEWEST_STEPS to `most`."""
    if device.type != "cpu":
        return most
    return min(most, max(FEWEST_STEPS, int(seconds / cost)))


def rule_name(protocol: Protocol, rule: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What the results call a stopping rule whose number of steps was lowered unless a number was asked for."""
    followed = {key: rule[key] for key in ("tol", "measure", "max_steps")}
    return protocol.named(**followed, reason=FOR_DEVICE if asked.get("max_steps") is None else "")


def _peak_memory() -> int:
    """Largest number of bytes that this process has held, if the system reports it, else 0."""
    try:
        import resource
    except ImportError:
        return 0
    kilobytes = sys.platform != "darwin"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if kilobytes else 1)


def _seconds_per_row(model: Autoencoder, rows: int) -> float:
    """Measure f, in seconds per latent."""
    latents = model.sample_latents(rows)
    times, finite = [], True
    with torch.no_grad():
        for _ in range(3):  # the first call warms up
            began = time.perf_counter()
            finite = bool(model.latent_map(latents).isfinite().any())
            times.append(time.perf_counter() - began)
    if not finite:
        raise InputError(
            f"the first step of {model.name} holds no finite number: its weights are damaged, or too large for "
            f"{model.provenance.get('dtype', 'their precision')} (try dtype float32)"
        )
    return min(times[1:]) / rows
