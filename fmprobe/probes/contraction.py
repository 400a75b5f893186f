"""fmprobe contraction: does f bring points together, over N(0, I) inputs at large, and locally along trajectories?"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from fmprobe.errors import InputError
from fmprobe.probes.result import Result, probe_once
from fmprobe.progress import duration, followed
from fmprobe.report.plots import axes
from fmprobe.report.sections import Section
from fmprobe.runs import options as o
from fmprobe.tables import Cell, Table, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder

INPUTS, STARTS, STEPS = 256, 8, (0, 1, 3, 10, 30)  # by default
FEWEST_INPUTS, FEWEST_STARTS = 32, 2  # on a slow CPU
BUDGET = 90.0  # seconds that the Jacobians may take on a CPU; the inputs take at most a quarter of it
QUANTILES = (0.1, 0.5, 0.9)
ALONG = {
    "norms": ("spectral norm of J", "#0072B2"),
    "radii": ("spectral radius of J", "#D55E00"),
    "local": ("finite differences", "#009E73"),
}

Inputs = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Number of N(0, I) inputs that spreads are compared on. [default: 256, fewer on a CPU]",
        metavar="N",
        rich_help_panel=o.Panel.SEARCH,
    ),
]
Starts = Annotated[
    int | None,
    typer.Option(
        "--starts",
        "-n",
        min=2,
        help="Number of trajectories from N(0, I). [default: 8, fewer on a CPU]",
        metavar="N",
        rich_help_panel=o.Panel.SEARCH,
    ),
]
Steps = Annotated[
    list[int] | None,
    typer.Option(
        "--step",
        min=0,
        help="Step at which the Jacobian of every trajectory is examined. Repeatable. [default: 0, 1, 3, 10 and 30]",
        metavar="N",
        rich_help_panel=o.Panel.SEARCH,
    ),
]


@o.grouped(options=o.RUN, load=o.LOAD)
def contraction(
    model: o.Model,
    inputs: Inputs = None,
    starts: Starts = None,
    steps: Steps = None,
    batch_size: o.BatchSize = None,
    *,
    options: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Measure by how much f, E and D contract.

    The measures are their spread over N(0, I) inputs, and the Jacobian along trajectories. An encoder without a decoder
    gets a surrogate, so that there is an f: in closed form on a CPU, trained on an accelerator. The ratio of E does not
    depend on it.

    Example: fmprobe contraction facebook/vit-mae-base --step 0 --step 10
    """
    from fmprobe.runs.models import open_model

    asked = {"inputs": inputs, "starts": starts, "steps": steps, "batch_size": batch_size}
    seed = options["seed"]

    def probe(subject: "Autoencoder") -> tuple[Contraction, dict[str, Any]]:
        settings = _plan(subject, inputs, starts, tuple(steps or STEPS), batch_size)
        found = probe_contraction(subject, **settings, seed=seed)
        return found, {**found.protocol, "steps": found.steps, "batch_size": settings["batch_size"]}

    with open_model(model, options, asked, load, suffix="-contraction") as (run, loaded):
        return probe_once(run, loaded, seed, Contraction, probe)


def _plan(
    model: "Autoencoder", inputs: int | None, starts: int | None, steps: tuple[int, ...], batch_size: int | None
) -> dict[str, Any]:
    """Settings of `probe_contraction` that fit the device; those that are given stay."""
    from fmprobe.runs.plan import STABILITY_COST, measured_cost

    cost, slow = measured_cost(model), model.device.type == "cpu"
    through = 2 * cost.seconds  # one input through f, E and D
    along = (max(steps) + len(steps) * STABILITY_COST) * cost.seconds
    n = inputs or (max(FEWEST_INPUTS, min(INPUTS, int(BUDGET / 4 / through))) if slow else INPUTS)
    count = starts or (max(FEWEST_STARTS, min(STARTS, int(BUDGET / along))) if slow else STARTS)
    typer.echo(
        f"{n} inputs: about {duration(n * through)}; "
        f"the Jacobian at {len(set(steps))} steps of {count} trajectories: about {duration(count * along)}"
    )
    return {"n": n, "starts": count, "steps": steps, "batch_size": batch_size or cost.batch_size}


@dataclass(frozen=True)
class Contraction(Result):
    """How much a model contracts.

    Attributes:
        std_ratio: what `std_ratio` gives by map ("f", "E", "D", those that there are), on N(0, I) inputs of its shape.
        steps: steps of the trajectories that were looked at.
        norms: spectral norm of J_f there, `(starts, steps)`, nan where the orbit is not finite; None where f has no
            derivative or the model no f.
        radii: spectral radius of J_f there, likewise.
        local: largest ||f(a) - f(b)|| / ||a - b|| of a few pairs close by, a lower bound of the norm, likewise.
        distant: the same ratio of pairs of starts, `(starts // 2,)`; None without step 0.
        absent: why something is missing.
        protocol: numbers of inputs, starts and pairs, and the seed.
    """

    key: ClassVar[str] = "contraction"
    std_ratio: dict[str, dict[str, float | None]]
    steps: list[int]
    norms: "Tensor | None"
    radii: "Tensor | None"
    local: "Tensor | None"
    distant: "Tensor | None"
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
    model: "Autoencoder",
    *,
    n: int = INPUTS,
    starts: int = STARTS,
    steps: tuple[int, ...] = STEPS,
    seed: int = 0,
    batch_size: int = 32,
) -> Contraction:
    """Contraction of a model (Fumero et al., ICLR 2026, def. 3, fig. 6).

    An encoder without a latent map has the ratio of E alone.

    Args:
        model: the model.
        n: number of N(0, I) inputs for the ratios of standard deviations.
        starts: number of trajectories from N(0, I).
        steps: steps of the trajectories at which the Jacobian is examined.
        seed: seed of the inputs and the starts.
        batch_size: largest number of inputs or latents in one call of the model.

    Raises:
        InputError: there are fewer than two inputs or starts, or a step is negative.
    """
    import torch

    from fmprobe.dynamics import lipschitz
    from fmprobe.dynamics.checks import check_counts
    from fmprobe.dynamics.jacobian import NotDifferentiableError

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
        points = lipschitz.latents_at(f, model.sample_latents(starts, seed), steps, batch_size)
        local = torch.stack([lipschitz.local_lipschitz(f, z, seed=seed, batch_size=batch_size) for z in points], 1)
        distant = lipschitz.pairwise_lipschitz(f, points[0], batch_size) if steps[0] == 0 else None
        try:
            sizes = [lipschitz.jacobian_sizes(f, z, batch_size) for z in followed(points, "Jacobians", len(points))]
            norms, radii = (torch.stack(rows, 1) for rows in zip(*sizes, strict=True))
        except NotDifferentiableError as error:
            absent["norms"] = absent["radii"] = str(error)
    else:
        absent["f"] = f"{model.name} has no latent map: the encoder alone was looked at"
    protocol = {
        "inputs": n,
        "starts": starts,
        "seed": seed,
        "relative_distance": lipschitz.DISTANCE,
        "pairs_a_point": lipschitz.DIRECTIONS,
    }
    return Contraction(ratios, list(steps), norms, radii, local, distant, absent, protocol).about(model)


def _ratios(model: "Autoencoder", n: int, seed: int, batch_size: int) -> dict[str, dict[str, float | None]]:
    """By map that the model has."""

    def latents() -> "Iterable[Tensor]":
        return (model.sample_latents(min(batch_size, n - i), seed, i) for i in range(0, n, batch_size))

    maps: dict[str, tuple[Any, Iterable[Tensor]]] = {}
    if model.has_latent_map:
        maps["f"] = model.latent_map, latents()
    if model.image_shape:
        images = noise_images(n, model.image_shape, seed, batch_size)
        maps["E"] = model.encode_unchecked, (batch.to(model.device) for batch in images)
    if model.has_decoder:
        maps["D"] = model.decode, latents()
    batches = math.ceil(n / batch_size)
    return {name: std_ratio(f, followed(inputs, f"spread of {name}", batches)) for name, (f, inputs) in maps.items()}


def noise_images(n: int, shape: tuple[int, ...], seed: int, batch_size: int) -> "Iterator[Tensor]":
    """N(0, I) images `(B, *shape)` in batches, on the CPU, independent of the starts that N(0, I) latents are."""
    import torch

    from fmprobe.seeding import normal_rows

    for i in range(0, n, batch_size):
        rows = normal_rows(min(batch_size, n - i), math.prod(shape), seed, "contraction: inputs", i)
        yield torch.from_numpy(rows).reshape(-1, *shape)


def std_ratio(function: "Callable[[Tensor], Tensor]", inputs: "Iterable[Tensor]") -> dict[str, float | None]:
    """Standard deviation of what `function` gives over that of what it takes (Fumero et al., ICLR 2026, fig. 6).

    Args:
        function: takes and gives a batch.
        inputs: batches `(B, …)`.

    Returns:
        "pooled": the ratio over all values together, which sees the offsets between coordinates that are the same for
        every input. "across": the ratio over inputs, coordinate by coordinate, which does not, and so is below 1
        exactly where outputs lie closer together than inputs. None where an output is not finite.

    Raises:
        InputError: there are fewer than two inputs, or they do not vary.
    """
    import torch
    from sklearn.preprocessing import StandardScaler

    finite, count = True, 0
    scalers: tuple[Any, Any] = StandardScaler(), StandardScaler()
    with torch.no_grad():
        for batch in inputs:
            count += len(batch)
            outputs = function(batch.clone())  # that may change what it is given
            for scaler, rows in zip(scalers, (batch, outputs), strict=True):
                finite = finite and bool(rows.isfinite().all())
                if finite:  # the scaler refuses infinity and passes over nan
                    scaler.partial_fit(rows.detach().flatten(1).cpu().double().numpy())
    if count < 2:
        raise InputError(f"a standard deviation needs two inputs or more, got {count}")
    if not finite:
        return {"pooled": None, "across": None}
    before, after = ({"pooled": s.var_.mean() + s.mean_.var(), "across": s.var_.mean()} for s in scalers)
    if not before["across"] > 0:
        raise InputError(f"the {count} inputs do not vary, so that there is no spread to compare with")
    return {name: math.sqrt(after[name] / before[name]) for name in before}


def _summary(values: "Tensor") -> dict[str, float | int | None]:
    """Quantiles of what is known, and the share of it below 1."""
    import numpy as np

    known = values[values == values].double().numpy()
    if not len(known):
        return {"known": 0, "share_below_1": None, **{f"q{round(100 * q)}": None for q in QUANTILES}}
    quantiles = {f"q{round(100 * q)}": float(f"{np.quantile(known, q):.6g}") for q in QUANTILES}
    return {"known": len(known), "share_below_1": float((known < 1).mean()), **quantiles}


def plot_contraction(contraction: Mapping[str, Any]) -> "Figure":
    """Medians over starts against the step, with the band of four fifths of them; below the line at 1, f contracts.

    `contraction`: what `Contraction.to_dict` gives.
    """
    figure, ax = axes("step t of the trajectory", "factor by which f stretches at z[t]")
    for name, (label, colour) in ALONG.items():
        rows = [
            (step, row["q10"], row["q50"], row["q90"])
            for step, row in zip(contraction["steps"], contraction[name] or [], strict=False)
            if row["known"]
        ]
        if rows:
            steps, low, median, high = zip(*rows, strict=True)
            ax.plot(steps, median, "o-", ms=3, lw=1.5, color=colour, label=label)
            ax.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    ax.axhline(1, color="grey", ls="--", lw=1)
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(left=0)
    ax.set_yscale("log")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9, title="median; band: four fifths of the starts", title_fontsize=9)
    return figure


def lines(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The ratios by map, and the norm of the Jacobian at the last step."""
    ratios = ", ".join(f"{name} {number(row['across'], '.3f')}" for name, row in entry["std_ratio"].items())
    found = [("spread, outputs / inputs", ratios)]
    if entry["norms"]:
        last = entry["norms"][-1]
        text = (
            f"median {number(last['q50'], '.3f')}, below 1 for {number(last['share_below_1'], '.0%')} of {_known(last)}"
        )
        found.append((f"norm of J at step {entry['steps'][-1]}", text))
    return found


def sentence(entry: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Whether f contracts at the last step that was measured."""
    if not entry["norms"] or entry["norms"][-1]["q50"] is None:
        name = "f" if "f" in entry["std_ratio"] else "E"
        ratio = number(entry["std_ratio"][name]["across"], ".2f")
        return f"Over many inputs, {name} multiplies the spread of {'latents' if name == 'f' else 'images'} by {ratio}."
    last = entry["norms"][-1]
    return (
        f"After {entry['steps'][-1]} steps, f contracts every distance around {number(last['share_below_1'], '.0%')} "
        f"of {_known(last)}: the spectral norm of its Jacobian has the median {number(last['q50'], '.2f')}."
    )


def _known(row: Mapping[str, Any]) -> str:
    """Of how many starts a row knows something: those whose orbits are finite there."""
    return "the 1 orbit that is known" if row["known"] == 1 else f"the {row['known']} orbits that are known"


def factors(entry: Mapping[str, Any]) -> list[Table]:
    """The ratios of spread by map, and by which factor f stretches along the trajectories."""
    missing = ". ".join(dict.fromkeys(entry["absent"].values()))
    ratios = [(name, row["pooled"], row["across"]) for name, row in entry["std_ratio"].items()]
    found = [Table("Standard deviation, outputs over inputs", ratios, ("map", "pooled", "across inputs"), missing)]
    shown = {label: entry[name] for name, (label, _) in ALONG.items() if entry[name]}
    rows = [
        (str(step), *(cell for row in by_step for cell in _cells(row)))
        for step, *by_step in zip(entry["steps"], *shown.values(), strict=True)
    ]
    if entry["distant"]:
        rows.append(("pairs of starts", *[None] * (2 * len(shown) - 2), *_cells(entry["distant"])))
    title = f"Factors by which f stretches, medians over {entry['protocol']['starts']} trajectories"
    head = ("step", *(name for label in shown for name in (label, "below 1")))
    return found + [Table(title, rows, head)] * bool(shown)


def _cells(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """The median, and the share of trajectories below 1."""
    return row["q50"], Cell(row["share_below_1"], ".0%")


SECTIONS = (
    Section(
        "contraction",
        "Contraction",
        "At each point of a trajectory, f stretches distances by a factor. Where the factor is below 1, f contracts.",
        sentence=sentence,
        lines=lines,
        tables=factors,
        figures=lambda entry: {"spectral norm and radius along trajectories": plot_contraction(entry)},
    ),
)
COMMANDS = {"contraction": contraction}
