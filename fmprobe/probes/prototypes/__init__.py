"""fmprobe probe: what a model's latent map does, from its name alone; its attractors, from noise starts."""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmprobe.probes.prototypes.page import SECTIONS
from fmprobe.runs import options as o

if TYPE_CHECKING:
    from fmprobe.attractors import AttractorSet
    from fmprobe.autoencoder import Autoencoder
    from fmprobe.runs.run import Run

__all__ = ["COMMANDS", "SECTIONS", "Surrogate", "check_choices", "decoded", "decoded_alike", "open_prototypes", "probe"]

CURVES = 32  # starts whose residual curves are kept
TRAINED, CLOSED_FORM = "trained", "closed-form"

Surrogate = Annotated[
    str | None,
    typer.Option(
        help="Decoder that an encoder without one gets: trained, or closed-form, which takes the place of a trained "
        "one that paints worse than each image's own median colour. [default: closed-form on a CPU, else trained]",
        metavar="NAME",
        rich_help_panel=o.Panel.DECODER,
    ),
]


@o.grouped(options=o.RUN, plan=o.PLAN, load=o.LOAD)
def probe(
    model: o.Model,
    surrogate: Surrogate = None,
    *,
    options: dict[str, Any],
    plan: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Find a model's attractors from noise, and write a report.

    An encoder without a decoder first gets the diagram over capacity, which says what survives two sets of procedural
    images and a null. Then it gets a surrogate, fitted on procedural images and kept in the cache.

    Example: fmprobe probe facebook/vit-mae-base -n 256 -o runs/mae
    """
    with open_prototypes(model, options, plan, load, surrogate=surrogate) as (run, _):
        return run.finish()


@functools.wraps(probe)
def prototypes(**arguments: Any) -> Path:
    return probe(**arguments)  # the same run under the name of its first product


prototypes.__doc__ = """Extract a model's decoded attractors, one PNG each.

    It is the run of `fmprobe probe`. `prototypes/index.csv` in its folder lists the pictures.

    Example: fmprobe prototypes facebook/vit-mae-base -n 4096 -o runs/mae
    """


@contextmanager
def open_prototypes(
    name: str,
    options: Mapping[str, Any],
    plan: Mapping[str, Any],
    load: Mapping[str, Any],
    sources: Sequence[str] = (),
    surrogate: str | None = None,
) -> "Iterator[tuple[Run, Autoencoder]]":
    """The run of a model, with its attractors in the results: those on disk, or found now.

    Args:
        name: the model.
        options: those of the group `options.RUN`.
        plan: what is asked of the search, as `make_plan` takes it.
        load: how the model is loaded, as `fmprobe.load` takes it.
        sources: image sources that are tried before anything is computed, so that one that cannot be read costs
            nothing.
        surrogate: decoder that an encoder without one gets, "trained" or "closed-form"; None takes the closed form on a
            CPU and the trained one elsewhere.
    """
    from fmprobe.errors import InputError
    from fmprobe.runs.models import open_model

    check_choices({**plan, "surrogate": surrogate})
    with open_model(name, options, {**plan, "surrogate": surrogate}, load, sources=sources) as (run, model):
        if surrogate is not None and model.has_latent_map:
            raise InputError(f"{model.name} has a latent map already: leave --surrogate out")
        if "attractors" not in run.results:
            model = decoded(run, model, options["seed"], surrogate)
        run.once("attractors", lambda: _found(run, model, plan, options["seed"]), discard=["shards"])
        yield run, model


def check_choices(given: Mapping[str, Any]) -> None:
    """Raise InputError where an option of `probe` has none of its choices."""
    o.check_choice("measure", given.get("measure"), o.MEASURES)
    o.check_choice("merge", given.get("merge"), o.MERGES)
    o.check_choice("polish", given.get("polish"), ("anderson",))
    o.check_choice("surrogate", given.get("surrogate"), (TRAINED, CLOSED_FORM))


def decoded(run: "Run", model: "Autoencoder", seed: int, surrogate: str | None = None) -> "Autoencoder":
    """The model with the decoder that its attractors are found with, which the run decides once.

    An encoder without a decoder first gets the diagram over capacity, which says what two surrogates share and random
    weights do not. A trained surrogate that paints worse than each image's own median colour is not used for a finding.
    """
    from fmprobe.probes.prototypes.closed_form import closed_form_settings, what_survives
    from fmprobe.runs.models import settings_of, with_decoder

    if model.has_latent_map:
        return model
    what_survives(run, model, seed)
    if surrogate == TRAINED or (surrogate is None and model.device.type != "cpu"):
        whole = with_decoder(model, seed, settings_of("pixel", model, seed))
        if whole.surrogate_warning is None:
            return whole
        typer.echo("the trained surrogate is not used for a finding; one in closed form takes its place")
    return with_decoder(model, seed, closed_form_settings(run, model, seed))


def decoded_alike(run: "Run", model: "Autoencoder", seed: int, other: "Autoencoder") -> "Autoencoder":
    """A model, such as a null, with a decoder of the kind that `decoded` gave the model of the run."""
    from fmprobe.probes.prototypes.closed_form import closed_form_settings
    from fmprobe.runs.models import settings_of, with_decoder

    trained = "capacity" not in run.results or other.surrogate is None or other.surrogate.kind == "pixel"
    settings = settings_of("pixel", model, seed) if trained else closed_form_settings(run, model, seed)
    return with_decoder(model, seed, settings)


def attractors_in(run: "Run", model: "Autoencoder") -> "AttractorSet":
    """The attractors that a run found.

    Raises:
        InputError: they are missing or damaged, or they are no latents of the model.
    """
    from fmprobe.attractors import AttractorSet

    attractors = AttractorSet.load(run.path / "attractors")
    attractors.check_space(model)
    return attractors


def _found(run: "Run", model: "Autoencoder", plan: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
    """The entries of `results.json`, for the main process; all processes find the attractors together."""
    from fmprobe.probes.prototypes.found import prototypes_of, save_painted
    from fmprobe.probes.prototypes.nothing_settled import nothing_settled
    from fmprobe.probes.prototypes.reading import read_search
    from fmprobe.runs.run import head
    from fmprobe.runs.search import search

    began = time.perf_counter()
    made, found = search(model, run, plan, seed, "shards", CURVES)
    if found is None:
        return None
    prototypes = prototypes_of(model, *found, seed=made.seed, batch_size=made.batch_size)
    seconds = round(time.perf_counter() - began, 2)
    prototypes.save(run.path)
    shown = save_painted(model, run.path, made.batch_size)
    entries = prototypes.to_dict()
    entries["orbits"]["noise"] |= read_search(model, found[0], made, run.path)
    if not entries["attractors"]["sizes"]:
        entries |= nothing_settled(model, entries["orbits"]["noise"], made, run.results.get("what_survives"))
    protocol = {"starts": "N(0, I)", **asdict(made), "rules": found[0].orbits.protocol["rules"]}
    return {**head(model, protocol), **entries, "seconds": seconds, **shown, "total_seconds": run.seconds}


COMMANDS = {"probe": probe, "prototypes": prototypes}
