"""fmprobe compare: are the latent vector fields of two models the same, up to a map between their spaces?"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmprobe.errors import InputError
from fmprobe.probes.alignment.page import SECTIONS
from fmprobe.runs import options as o

if TYPE_CHECKING:
    from fmprobe.autoencoder import Autoencoder
    from fmprobe.probes.alignment.comparison import Alignment, Pairs
    from fmprobe.runs.run import Run

__all__ = ["COMMANDS", "SECTIONS", "compare"]

BUDGET = 180.0  # seconds that the orbits of a run on a CPU may take, where nobody says how many steps
PARTS = "comparisons"  # folder of what has been compared, while a run goes on
NOISE = 0.01

A = Annotated[str, typer.Argument(metavar="A", help="Hub id (ORG/NAME) or local folder in Hugging Face layout.")]
B = Annotated[str, typer.Argument(metavar="B", help="The other model.")]
Data = Annotated[
    str,
    typer.Option(
        help="Images that both models are shown, SOURCE[:split][#column].",
        metavar="SOURCE",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Images = Annotated[
    int,
    typer.Option(
        "--images",
        min=12,
        help="Number of images, spread evenly; two thirds fit the maps.",
        metavar="N",
        rich_help_panel=o.Panel.IMAGES,
    ),
]
Maps = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="orthogonal, linear or relative. Repeatable. [default: all that can]",
        metavar="NAME",
        rich_help_panel=o.Panel.COMPARISON,
    ),
]
Anchors = Annotated[
    int,
    typer.Option(
        min=2,
        help="Number of images that relative representations are relative to.",
        metavar="N",
        rich_help_panel=o.Panel.COMPARISON,
    ),
]
Null = Annotated[
    bool,
    typer.Option(
        "--null/--no-null",
        help="Also compare A with a randomly initialised B, as a null.",
        rich_help_panel=o.Panel.COMPARISON,
    ),
]
Ceiling = Annotated[
    bool,
    typer.Option(
        "--ceiling/--no-ceiling",
        help="Also compare A with A under weight noise, as a ceiling.",
        rich_help_panel=o.Panel.COMPARISON,
    ),
]
Noise = Annotated[
    float | None,
    typer.Option(
        min=0,
        callback=o.finite,
        help="Strength of the ceiling's weight noise, relative to each weight tensor's size. [default: 0.01]",
        metavar="X",
        rich_help_panel=o.Panel.COMPARISON,
    ),
]
DecoderB = Annotated[
    str | None,
    typer.Option(
        help="Surrogate decoder of B, as --decoder is that of A.", metavar="NAME", rich_help_panel=o.Panel.DECODER
    ),
]


@o.grouped(options=o.RUN, search=o.ORBITS | o.MERGING, load=o.without(o.LOAD, "revision", "decoder"))
def compare(
    model_a: A,
    model_b: B,
    data: Data,
    images: Images = 96,
    maps: Maps = None,
    anchors: Anchors = 64,
    null: Null = True,
    ceiling: Ceiling = True,
    noise: Noise = None,
    decoder: o.Decoder = None,
    decoder_b: DecoderB = None,
    *,
    options: dict[str, Any],
    search: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Compare the latent vector fields of two models.

    Both models are shown the same images, and a null and a ceiling stand beside each figure. Maps between the two
    latent spaces are fitted on a part of the images. The rest gives the error of the map, the cosine of the fields, the
    agreement of basins, the distance of attractor sets, and the agreement of relative representations along the
    iteration.

    Example: fmprobe compare facebook/vit-mae-base ./mine --data photos
    """
    if noise is not None and not ceiling:
        raise InputError("--noise is that of the ceiling: leave it out, or --no-ceiling")
    from fmprobe.digests import digest
    from fmprobe.hub import canonical
    from fmprobe.images import sample_images
    from fmprobe.probes.alignment.latent_maps import FITS
    from fmprobe.runs.models import load_model
    from fmprobe.runs.run import Run, default_out, identity

    for name in maps or ():
        o.check_choice("map", name, tuple(FITS))
    o.check_choice("measure", search["measure"], o.MEASURES)
    o.check_choice("merge", search["merge"], o.MERGES)
    began, names, decoders, seed = time.perf_counter(), (model_a, model_b), (decoder, decoder_b), options["seed"]
    strength = (NOISE if noise is None else noise) if ceiling else None
    settings = {"maps": maps, "anchors": anchors, **search}
    loaded = [load_model(name, decoder=d, **load) for name, d in zip(names, decoders, strict=True)]
    pictures = [sample_images(data, images, **model.image_arguments) for model in loaded]
    asked = {
        "models": [canonical(name) for name in names],
        "decoders": [place and canonical(place) for place in decoders],
        "data": canonical(data),
        "pictures": digest(*pictures),
        "identities": [identity(model) for model in loaded],
        "images": images,
        "null": null,
        "ceiling": strength,
        "seed": seed,
        **load,
        **settings,
    }
    out = options["out"] or default_out(model_a, f"-and-{default_out(model_b).name}")
    with Run.open(out, asked, began=began, resume=options["resume"], verbose=options["verbose"]) as run:

        def make() -> dict[str, Any] | None:
            sides = _sides(names, loaded, load, seed, null=null, noise=strength)
            chosen = _settings(run, sides, settings, len(pictures[0]))
            found = _compared(run, sides, pictures, chosen, seed, asked=search)
            facts = {"data": data, "weight_noise": strength, **found.protocol}
            return _results(run, found, sides, facts)

        run.once("alignment", make, discard=[PARTS])
        return run.finish("alignment")


def _sides(
    names: tuple[str, str],
    loaded: "list[Autoencoder]",
    load: Mapping[str, Any],
    seed: int,
    *,
    null: bool,
    noise: float | None,
) -> "dict[str, Autoencoder]":
    """The networks by what they are: "A", "B", and the null and the ceiling that are asked for."""
    from fmprobe.runs.models import load_model, with_decoder

    sides = {name: with_decoder(model, seed) for name, model in zip("AB", loaded, strict=True)}
    if null:
        typer.echo("\nthe null: the architecture of B with random weights (--no-null leaves it out)")
        sides["null"] = with_decoder(load_model(names[1], random_weights=0, **load), seed)
    if noise is not None:
        sides["ceiling"] = _disturbed(names[0], sides["A"], noise, load, seed)
    return sides


def _disturbed(name: str, model: "Autoencoder", noise: float, load: Mapping[str, Any], seed: int) -> "Autoencoder":
    """The model once more, with noise on its weights; a surrogate decoder stays as it is."""
    from fmprobe.probes.alignment.perturbation import perturbed_checkpoint
    from fmprobe.published import published_id
    from fmprobe.runs.models import load_model

    typer.echo(f"\nthe ceiling: A with weight noise of {noise:.1%} (--no-ceiling leaves it out)")
    with tempfile.TemporaryDirectory() as scratch:
        copy = perturbed_checkpoint(name, Path(scratch) / Path(name).resolve().name, noise=noise, seed=seed)
        twin = load_model(str(copy), decoder=published_id(model), **load)
    return twin if model.surrogate is None else twin.with_decoder(model.surrogate)


def _settings(run: "Run", sides: "Mapping[str, Autoencoder]", asked: Mapping[str, Any], n: int) -> dict[str, Any]:
    """What was asked for, the published tolerance, and on a CPU a step limit that the budget affords; pinned."""
    from fmprobe.dynamics.protocols import protocol_for
    from fmprobe.probes.alignment.comparison import DRIFT_STEPS
    from fmprobe.runs.plan import affordable_steps, measured_cost

    def choose() -> dict[str, Any]:
        chosen = {key: value for key, value in asked.items() if value is not None}
        costs = [measured_cost(model) for model in sides.values()]
        chosen.setdefault("batch_size", costs[0].batch_size)
        step = n * sum(cost.seconds for cost in costs)  # of all images in every network
        if "max_steps" not in chosen:
            most = protocol_for(sides["A"], sides["B"]).max_steps
            chosen["max_steps"] = affordable_steps(most, BUDGET, step, sides["A"].device)
        chosen["drift_steps"] = [step for step in DRIFT_STEPS if step <= chosen["max_steps"]]
        minutes = chosen["max_steps"] * step / 60
        typer.echo(f"\n{n} images, at most {chosen['max_steps']} steps of orbits: at most {minutes:.1f} min")
        return chosen

    chosen = run.pin("settings", choose)  # how many steps are affordable follows from how fast the machine was then
    for name, model in sides.items():
        run.pin_circumstances(model, name)
    return chosen


def _compared(
    run: "Run",
    sides: "Mapping[str, Autoencoder]",
    pictures: Any,
    chosen: Mapping[str, Any],
    seed: int,
    asked: Mapping[str, Any],
) -> "Alignment":
    """The comparisons, which the processes draw; each is kept until the run is done."""
    import fmprobe.probes.alignment.comparison as comparison
    from fmprobe.dynamics.protocols import protocol_for
    from fmprobe.runs.plan import rule_name

    def shared(pairs: "Pairs") -> dict[str, Any]:
        def work(name: str, _: Mapping[str, Any]) -> Any:
            run.tell("compare", pair=name)
            return pairs[name]()

        return dict(run.shared(PARTS, work, {name: {**chosen, "seed": seed} for name in pairs}))

    a, b, *_ = sides.values()
    twins = {name: sides.get(name) for name in ("null", "ceiling")}
    settings = {**twins, **chosen, "seed": seed, "images_b": pictures[1]}
    found = comparison.compare(a, b, pictures[0], compute=shared, **settings)
    name = rule_name(protocol_for(a, b), found.protocol, asked)
    return replace(found, protocol={**found.protocol, "name": name})


def _results(
    run: "Run", found: "Alignment", sides: "Mapping[str, Autoencoder]", protocol: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The entries of `results.json`, for the main process, and `alignment.png`."""
    from fmprobe.pictures import save_figure
    from fmprobe.runs.run import head
    from fmprobe.sharing import is_main

    if not is_main():
        return None
    save_figure(found.draw(), run.path / "alignment.png")
    second = head(sides["B"], {})
    return {
        **head(sides["A"], protocol),
        "other": {key: second[key] for key in ("model", "decoder")},
        "alignment": found.to_dict(),
        "total_seconds": run.seconds,
    }


COMMANDS = {"compare": compare}
