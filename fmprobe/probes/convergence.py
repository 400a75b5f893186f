"""fmprobe convergence: does an orbit take as many steps as the Jacobian at its attractor foretells?"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from fmprobe.errors import InputError
from fmprobe.probes.result import Result, probe_once
from fmprobe.progress import duration
from fmprobe.report.plots import SERIES, axes
from fmprobe.report.sections import Section
from fmprobe.runs import options as o
from fmprobe.tables import Table, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder

STARTS, FEWEST_STARTS = 64, 16  # by default, and at least on a slow CPU
STEPS, CAP = 3000, 256  # largest number of steps, and of Jacobians examined, by default
NEAR = 1e-6  # squared step at which an orbit has settled, relative to the square of eps
BUDGET = 60.0  # seconds that the orbits, and again the Jacobians, may take on a CPU

Starts = Annotated[
    int | None,
    typer.Option(
        "--starts",
        "-n",
        min=1,
        help="Number of starts drawn from N(0, I). [default: 64, fewer on a slow CPU]",
        metavar="N",
        rich_help_panel=o.Panel.SEARCH,
    ),
]
Eps = Annotated[
    float,
    typer.Option(
        callback=o.finite,
        help="Euclidean distance within which an orbit has reached its attractor.",
        metavar="X",
        rich_help_panel=o.Panel.SEARCH,
    ),
]
MaxSteps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Largest number of steps of an orbit. [default: 3000, fewer on a slow CPU]",
        metavar="N",
        rich_help_panel=o.Panel.SEARCH,
    ),
]


@o.grouped(options=o.RUN, load=o.LOAD)
def convergence(
    model: o.Model,
    starts: Starts = None,
    eps: Eps = 1e-2,
    max_steps: MaxSteps = None,
    batch_size: o.BatchSize = None,
    *,
    options: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Compare the steps of orbits with the Jacobian's estimate.

    The steps are those that an orbit takes to its attractor, and the Jacobian is the one there. An encoder without a
    decoder gets a surrogate: in closed form on a CPU, trained on an accelerator. Raise --eps for large latents, whose
    attractors are not known to a tenth of it.

    Example: fmprobe convergence facebook/vit-mae-base --eps 0.1
    """
    _check(eps)
    from fmprobe.runs.models import open_model

    asked = {"starts": starts, "eps": eps, "max_steps": max_steps, "batch_size": batch_size}
    seed = options["seed"]

    def probe(subject: "Autoencoder") -> tuple[Convergence, dict[str, Any]]:
        settings = _plan(subject, starts, max_steps, batch_size)
        found = probe_convergence(subject, **settings, seed=seed, eps=eps, tol=NEAR * eps**2, progress=None)
        return found, {"starts": "N(0, I)", **settings, "seed": seed, "eps": eps, **found.protocol}

    with open_model(model, options, asked, load, suffix="-convergence") as (run, loaded):
        return probe_once(run, loaded, seed, Convergence, probe)


def _plan(model: "Autoencoder", starts: int | None, max_steps: int | None, batch_size: int | None) -> dict[str, Any]:
    """Settings of `probe_convergence` that fit the device; those that are given stay."""
    from fmprobe.runs.plan import STABILITY_COST, TYPICAL_STEPS, affordable_steps, measured_cost

    cost, slow = measured_cost(model), model.device.type == "cpu"
    n = starts or STARTS
    if starts is None and slow:
        affordable = int(BUDGET / (2 * TYPICAL_STEPS * cost.seconds)) // 8 * 8
        n = min(STARTS, max(FEWEST_STARTS, affordable))
    step = 2 * n * cost.seconds  # orbits are followed to their attractors, and once more to measure the distance
    most = max_steps or affordable_steps(STEPS, BUDGET, step, model.device)
    jacobian = STABILITY_COST * cost.seconds
    cap = min(CAP, max(2, int(BUDGET / jacobian))) if slow else CAP
    typer.echo(
        f"{n} starts from N(0, I), at most {most} steps, twice: at most {duration(most * step)}; "
        f"then the Jacobians: at most {duration(min(n, cap) * jacobian)}"
    )
    return {"n": n, "max_steps": most, "batch_size": batch_size or cost.batch_size, "stability_cap": cap}


def _check(eps: float) -> None:
    if not 0 < eps < float("inf"):
        raise InputError(f"eps must be positive and finite, got {eps}")


@dataclass(frozen=True)
class Convergence(Result):
    """Measured against estimated steps to within `eps` of the attractor, over the starts that have an estimate.

    Attributes:
        eps: Euclidean distance from the attractor.
        starts: number of starts.
        attractors: number of attractors that they lead to.
        estimates: by "spectral_norm", the paper's rho = ||J_f(z*)||_sigma, and by "spectral_radius", the rate that
            holds in the end: the `measured` steps and the `estimated` ones a start, the correlations `pearson` and
            `spearman` (None where there are fewer than 3 points, or no spread), and `median_ratio`, measured over
            estimated.
        left_out: number of starts without an estimate, by rate and reason.
        protocol: how the orbits were followed.
    """

    key: ClassVar[str] = "convergence"
    eps: float
    starts: int
    attractors: int
    estimates: dict[str, dict[str, Any]]
    left_out: dict[str, dict[str, int]]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The key `convergence` of `results.json`."""
        return asdict(self)


def probe_convergence(
    model: Any,
    n: int | None = None,
    *,
    starts: "Tensor | None" = None,
    seed: int = 0,
    eps: float = 1e-2,
    tol: float = 1e-10,
    max_steps: int = STEPS,
    batch_size: int = 256,
    **search: Any,
) -> Convergence:
    """Steps until ||z_t - z*|| <= eps against log(eps / ||z_0 - z*||) / log(rho) (Fumero et al., ICLR 2026, prop. A.9).

    Args:
        model: an Autoencoder; or f itself, where `starts` are given.
        n: number of starts drawn from N(0, I), by default 64.
        starts: starts `(n, *latent_shape)` in place of drawn ones.
        seed: seed of the starts.
        eps: Euclidean distance from the attractor.
        tol: tolerance to which the attractors are found, which should lie far below `eps`.
        max_steps: largest number of steps of an orbit.
        batch_size: largest number of latents in one call of f.
        search: further arguments of `find_attractors`.

    Raises:
        InputError: `eps` is not positive and finite, or `n` is not the number of `starts`.
        ValueError: a setting makes no sense to `find_attractors`.
    """
    from fmprobe.attractors import find_attractors, noise_starts
    from fmprobe.autoencoder import Autoencoder
    from fmprobe.dynamics.approach import Approach
    from fmprobe.dynamics.iterate import iterate

    if starts is not None and n not in (None, len(starts)):
        raise InputError(f"{len(starts)} starts are given, and n={n}: leave out one of them")
    _check(eps)
    search = {"progress": False, "stability_cap": CAP} | search
    settings: dict[str, Any] = {"tol": tol, "max_steps": max_steps, "batch_size": batch_size}
    settings["progress"] = search.pop("progress")
    if (measure := search.pop("measure", None)) is not None:
        settings["measure"] = measure  # of both searches below
    f = getattr(model, "latent_map", model)
    latents = noise_starts(model, STARTS if n is None else n, seed) if starts is None else starts
    found = find_attractors(f, starts=latents, **settings, **search)
    near = Approach(latents, found, eps)
    if bool((found.labels >= 0).any()):
        iterate(f, latents, observer=near, **settings)
    rates = {"spectral_norm": found.spectral_norm, "spectral_radius": found.spectral_radius}
    estimates, left_out = {}, {}
    for name, rho in rates.items():
        estimates[name], left_out[name] = near.against(rho)
    made = Convergence(eps, len(latents), len(found), estimates, left_out, found.orbits.protocol)
    return made.about(model) if isinstance(model, Autoencoder) else made


def convergence_scatter(entry: Mapping[str, Any]) -> "Figure":
    """Measured steps against those of prop. A.9, by either rate, with the line on which they are equal.

    `entry`: the key `convergence` of `results.json`.
    """
    figure, ax = axes("estimated steps  log(eps / ||z0 - z*||) / log(rho)", "measured steps")
    most = 1.0
    for (name, points), colour in zip(entry["estimates"].items(), SERIES, strict=False):
        known = "" if points["pearson"] is None else f", r = {points['pearson']:.2f}"
        label = f"rho: {_words(name)} ({len(points['measured'])} starts{known})"
        ax.plot(points["estimated"], points["measured"], "o", ms=3, alpha=0.5, color=colour, label=label)
        most = max([most, *points["estimated"], *points["measured"]])
    ax.plot([1, most], [1, most], color="grey", ls="--", lw=1, label="equal")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_title(f"Steps until {entry['eps']:g} from the attractor", fontsize=10)
    ax.legend(frameon=False, fontsize=9)
    return figure


def lines(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """By rate, how many steps are measured for one that is estimated."""
    return [
        (
            f"steps by {_words(name)}",
            f"measured / estimated {number(points['median_ratio'], '.2f')} (median), "
            f"r = {number(points['pearson'], '.2f')}, {len(points['measured'])} of {entry['starts']} starts",
        )
        for name, points in entry["estimates"].items()
    ]


def sentence(entry: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """How the measured steps compare with the estimate by the spectral radius."""
    points = entry["estimates"]["spectral_radius"]
    if points["median_ratio"] is None:
        return "No start has an estimate of its steps by the spectral radius."
    return (
        f"The {len(points['measured'])} orbits with an estimate take {number(points['median_ratio'], '.2f')} times the "
        f"steps that the spectral radius of their attractor foretells (median; correlation "
        f"{number(points['pearson'], '.2f')})."
    )


def comparison(entry: Mapping[str, Any]) -> list[Table]:
    """The agreement by rate, and why starts have no estimate."""
    measures = {"pearson": "Pearson", "spearman": "Spearman", "median_ratio": "median measured / estimated"}
    rows = [
        (_words(name), len(points["measured"]), *(points[key] for key in measures))
        for name, points in entry["estimates"].items()
    ]
    left_out = entry["left_out"]
    reasons = dict.fromkeys(reason for counts in left_out.values() for reason, count in counts.items() if count)
    missing = [(reason, *(counts[reason] for counts in left_out.values())) for reason in reasons]
    title = f"Steps of {entry['starts']} starts until {entry['eps']:g} from one of {entry['attractors']} attractors"
    found = [Table(title, rows, ("rho", "starts", *measures.values()))]
    return found + [Table("Starts without an estimate", missing, ("reason", *map(_words, left_out)))] * bool(missing)


def _words(name: str) -> str:
    return name.replace("_", " ")


SECTIONS = (
    Section(
        "convergence",
        "Speed of convergence",
        "The steps that orbits take until they are within eps of their attractor are compared with the estimate "
        "log(eps/||e0||)/log(rho) (prop. A.9).",
        sentence=sentence,
        lines=lines,
        tables=comparison,
        figures=lambda entry: {"measured against estimated steps": convergence_scatter(entry)},
    ),
)
COMMANDS = {"convergence": convergence}
