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

__all__ = ["COMMANDS", "SECTIONS", "decoded", "open_prototypes", "probe"]

CURVES = 32  # starts whose residual curves are kept
TRAINED, CLOSED_FORM = "trained", "closed-form"

Surrogate = Annotated[
    str | None,
    typer.Option(
        help="Decoder that an encoder without one gets: trained, or closed-form with the diagram over capacity. "
        "[default: trained, and closed-form where that paints worse than each image's own median colour]"
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
    """Find a model's attractors from noise starts and write a run folder with a report.

    An encoder without a decoder gets a surrogate, fitted on procedural images and kept in the cache.
    """
    with open_prototypes(model, options, plan, load, surrogate=surrogate) as (run, _):
        return run.finish()


@functools.wraps(probe)
def prototypes(**arguments: Any) -> Path:
    return probe(**arguments)  # the same run under the name of its first product


prototypes.__doc__ = "Extract a model's decoded attractors, one PNG each with an index."


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
        surrogate: decoder that an encoder without one gets, "trained" or "closed-form"; None takes the closed form
            where the trained one paints worse than each image's own median colour.
    """
    from fmprobe.errors import InputError
    from fmprobe.runs.models import open_model

    o.check_choice("measure", plan.get("measure"), o.MEASURES)
    o.check_choice("merge", plan.get("merge"), o.MERGES)
    o.check_choice("polish", plan.get("polish"), ("anderson",))
    o.check_choice("surrogate", surrogate, (TRAINED, CLOSED_FORM))
    with open_model(name, options, {**plan, "surrogate": surrogate}, load, sources=sources) as (run, model):
        if surrogate is not None and model.has_latent_map:
            raise InputError(f"{model.name} has a latent map already: leave --surrogate out")
        if "attractors" not in run.results:
            model = decoded(run, model, options["seed"], surrogate)
        run.once("attractors", lambda: _found(run, model, plan, options["seed"]), discard=["shards"])
        yield run, model


def decoded(run: "Run", model: "Autoencoder", seed: int, surrogate: str | None = None) -> "Autoencoder":
    """The model with the decoder that its attractors are found with, which the run decides once.

    A trained surrogate that paints worse than each image's own median colour is not used for a finding, unless it is
    asked for.
    """
    from fmprobe.runs.models import with_decoder

    if model.has_latent_map:
        return model
    if surrogate != CLOSED_FORM and "what_survives" not in run.results:
        whole = with_decoder(model, seed)
        if surrogate == TRAINED or whole.surrogate_warning is None:
            return whole
        typer.echo("the trained surrogate is not used for a finding; one in closed form takes its place")
    from fmprobe.probes.prototypes.closed_form import with_closed_form

    return with_closed_form(run, model, seed)


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
    protocol = {"starts": "N(0, I)", **asdict(made), "rules": found[0].orbits.protocol["rules"]}
    return {**head(model, protocol), **entries, "seconds": seconds, **shown, "total_seconds": run.seconds}


COMMANDS = {"probe": probe, "prototypes": prototypes}
