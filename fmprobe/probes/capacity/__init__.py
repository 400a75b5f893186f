"""fmprobe capacity: what orbits do over the number of values that a latent keeps, and whose doing it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from fmprobe.probes.capacity.page import SECTIONS, plot_capacity
from fmprobe.probes.result import Result
from fmprobe.runs import options as o

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fmprobe.attractors import AttractorSet
    from fmprobe.autoencoder import Autoencoder
    from fmprobe.probes.capacity.diagram import Agreement, Point
    from fmprobe.probes.capacity.reading import CapacityReading

__all__ = ["COMMANDS", "SECTIONS", "Capacity", "capacity", "probe_capacity"]

MAX_STEPS, EXPONENT_STEPS, FOLLOWED = 60, 40, 4  # of orbits, of exponents, and orbits whose exponent is measured

Components = Annotated[
    list[int] | None,
    typer.Option(
        "--k",
        min=1,
        help="Number of principal components. Repeatable. [default: powers of 2, to images - 1]",
        metavar="K",
        rich_help_panel=o.Panel.DECODER,
    ),
]
Images = Annotated[
    int,
    typer.Option(
        "--images", min=16, help="Number of procedural images in each set.", metavar="N", rich_help_panel=o.Panel.IMAGES
    ),
]
Starts = Annotated[
    int,
    typer.Option(
        "--starts",
        "-n",
        min=1,
        help="Number of starts drawn from N(0, I).",
        metavar="N",
        rich_help_panel=o.Panel.SEARCH,
    ),
]
Null = Annotated[
    bool,
    typer.Option(
        "--null/--no-null",
        help="Whether random weights of the architecture are tried.",
        rich_help_panel=o.Panel.COMPARISON,
    ),
]


@o.grouped(options=o.RUN, orbits={**o.ORBITS, **o.MERGING}, load=o.without(o.LOAD, "decoder"))
def capacity(
    model: o.Model,
    k: Components = None,
    images: Images = 1000,
    starts: Starts = 16,
    null: Null = True,
    *,
    options: dict[str, Any],
    orbits: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Find up to which capacity of a decoder orbits settle.

    The decoder keeps k principal components of the encoder's features, in closed form. Two sets of procedural images
    and random weights are tried. No photograph is needed, and nothing is trained by steps.

    Example: fmprobe capacity facebook/dinov2-small --k 8 --k 64
    """
    from fmprobe.pictures import save_figure
    from fmprobe.runs.models import open_model
    from fmprobe.runs.run import head
    from fmprobe.sharing import is_main

    o.check_choice("measure", orbits["measure"], o.MEASURES)
    o.check_choice("merge", orbits["merge"], o.MERGES)
    asked = {"k": k, "images": images, "starts": starts, "null": null, **orbits}
    settings: dict[str, Any] = {
        name: value for name, value in orbits.items() if value is not None or name not in ("batch_size", "merge")
    }
    with open_model(model, options, asked, load, suffix="-capacity") as (run, encoder):

        def make() -> dict[str, Any] | None:
            if not is_main():
                return None
            found = probe_capacity(
                encoder,
                k,
                n_images=images,
                starts=starts,
                null=None if null else False,
                seed=options["seed"],
                **settings,
            )
            save_figure(found.draw(), run.path / "capacity.png")
            return {**head(encoder, found.protocol), **found.entries(), "total_seconds": run.seconds}

        run.once("capacity", make)
        return run.finish("what_survives", "capacity", "agreement")


@dataclass(frozen=True)
class Capacity(Result):
    """The diagram over capacity, and what it says.

    Attributes:
        points: a point for each set of images, and each k, in this order.
        agreements: for each k how far the attractors of both sets agree.
        reading: what both sets share, and what the null shows.
        protocol: every number that decided a figure.
        models: for each set and k, the model with its decoder and what its search found.
    """

    key: ClassVar[str] = "capacity"
    points: "tuple[Point, ...]"
    agreements: "tuple[Agreement, ...]"
    reading: "CapacityReading"
    protocol: dict[str, Any]
    models: "Mapping[tuple[str, int], tuple[Autoencoder, AttractorSet]]"

    def entries(self) -> dict[str, Any]:
        """The keys `what_survives`, `capacity` and `agreement` of `results.json`."""
        from dataclasses import asdict

        from fmprobe.probes.capacity.diagram import to_rows

        agreements = [asdict(one) for one in self.agreements]
        return {
            "what_survives": self.reading.to_dict(),
            "capacity": to_rows(self.points),
            "agreement": agreements,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**self.entries(), "protocol": self.protocol}

    def draw(self) -> "Figure":
        """Exponents against k."""
        return plot_capacity(self.entries()["capacity"])

    def _repr_html_(self) -> str:
        from fmprobe.report.show import html_of

        return html_of(self.entries(), self.draw(), self.warnings)


def probe_capacity(
    model: "Autoencoder",
    ks: Sequence[int] | None = None,
    *,
    n_images: int = 1000,
    starts: int = 16,
    max_steps: int | None = None,
    tol: float | None = None,
    measure: str | None = None,
    merge: str = "relative",
    merge_threshold: float | None = None,
    batch_size: int = 32,
    null: "Autoencoder | bool | None" = None,
    seed: int = 0,
    progress: bool | None = None,
    callback: "Callable[[Point], None] | None" = None,
) -> Capacity:
    """What orbits do when a closed-form decoder keeps k numbers of an encoder's features, over k.

    k is the capacity that figure 2 of the paper varies (Fumero et al., ICLR 2026). Each point is made with surrogates
    from two disjoint sets of procedural images, A and B, and with random weights of the same architecture, the null,
    whose decoder is fitted on the images of A. The last point keeps all features: each place of the image is painted by
    ridge regression from the features around it.

    Args:
        model: an encoder without a decoder.
        ks: numbers of principal components; by default powers of 2, up to one below the number of images.
        n_images: number of procedural images in each set.
        starts: number of starts from N(0, I).
        max_steps: largest number of steps of an orbit; by default that of the paper's protocol for the model, at most
            60 on a CPU.
        tol: tolerance at which an orbit has converged; by default that of the protocol.
        measure: how a step is measured, as `iterate` takes it; by default that of the protocol.
        merge: measure by which two ends are one attractor, as in `find_attractors`.
        merge_threshold: distance within which they are, and within which a picture of A matches one of B.
        batch_size: largest number of latents in one call of f.
        null: the null; by default the model's own architecture with random weights, loaded by its name, and False for
            none.
        seed: seed of the images and the starts.
        progress: whether to show progress bars; None shows them on a terminal, and lines elsewhere.
        callback: is given each point as soon as it is known.

    Raises:
        InputError: the model has a latent map already, a k is not below the number of images, the null cannot be made
            or has other shapes, or features are not finite or do not vary.
        ValueError: a number makes no sense.
    """
    from fmprobe.dynamics.attractors import check_settings
    from fmprobe.dynamics.checks import check_counts
    from fmprobe.dynamics.iterate import check_rule
    from fmprobe.probes.capacity import diagram
    from fmprobe.probes.capacity.reading import read_capacity
    from fmprobe.runs.plan import rule_name

    chosen = diagram.checked(model, ks, n_images, starts, seed)
    rule = model.protocol.chosen(tol, measure, max_steps)
    if max_steps is None and model.device.type == "cpu":
        rule["max_steps"] = min(rule["max_steps"], MAX_STEPS)
    check_counts(batch_size=batch_size)
    check_rule(**rule)
    check_settings(merge, merge_threshold, 0, None)
    merging = {"merge": merge, "threshold": merge_threshold}
    encoders = {diagram.A: (model, seed), diagram.B: (model, seed + diagram.OTHER_IMAGES)}
    random = _null(model, null)
    if random is not None:
        encoders[diagram.NULL] = (random, seed)
    effort = {"cap": FOLLOWED, "steps": EXPONENT_STEPS, "burn_in": EXPONENT_STEPS // 4}
    found = diagram.points_of(
        encoders,
        chosen,
        n_images=int(n_images),
        starts=int(starts),
        rule=rule,
        merging=merging,
        effort=effort,
        seed=seed,
        batch_size=int(batch_size),
        progress=progress,
    )
    points, models = [], {}
    for point, whole, attractors in found:
        if callback is not None:
            callback(point)
        points.append(point)
        models[point.set, point.k] = whole, attractors
    agreements = [diagram.agreement_of(k, models[diagram.A, k], models[diagram.B, k], merge_threshold) for k in chosen]
    protocol = {
        "starts": "N(0, I)",
        "n": starts,
        "n_images": n_images,
        "seed": seed,
        "name": rule_name(model.protocol, rule, {"max_steps": max_steps}),
        **rule,
        **merging,
        **effort,
        "settles": diagram.SETTLES,
    }
    return Capacity(tuple(points), tuple(agreements), read_capacity(points, agreements), protocol, models)


def _null(model: "Autoencoder", null: "Autoencoder | bool | None") -> "Autoencoder | None":
    """The encoder with random weights, or None for none."""
    from fmprobe.probes.surrogate_report import check_null, random_twin

    if null is False:
        return None
    if null is None or null is True:
        return random_twin(model)
    check_null(null, model)
    return null


COMMANDS = {"capacity": capacity}
