"""What probe, prototypes, weights and demo do alike: load, find a decoder, plan, run, write, tell."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import fmprobe
from fmprobe.cli.output import tell, warn
from fmprobe.errors import InputError
from fmprobe.files import finite
from fmprobe.hub import canonical
from fmprobe.report.rendering import number
from fmprobe.runs.folder import RunFolder, differences
from fmprobe.sharing import is_main, launched

if TYPE_CHECKING:
    from fmprobe.autoencoder import Autoencoder
    from fmprobe.probes.prototypes import Plan, Prototypes
    from fmprobe.surrogates.artefact import Surrogate

MEASURES, MERGES = ("squared", "relative", "rms"), ("relative", "cosine")


def run_prototypes(
    name: str,
    out: Path | None,
    *,
    load: Mapping[str, Any],
    plan: Mapping[str, Any],
    seed: int,
    resume: bool,
    verbose: bool = False,
) -> Path:
    """From a model's name to a finished run folder; returns the folder."""
    _, folder, results = open_run(name, out, load=load, plan=plan, seed=seed, resume=resume, verbose=verbose)
    if is_main():
        from fmprobe.report.page import write_report

        write_report(folder.path)
        tell(results, folder.path)
    return folder.path


def open_run(
    name: str,
    out: Path | None,
    *,
    load: Mapping[str, Any],
    plan: Mapping[str, Any],
    seed: int,
    resume: bool,
    verbose: bool = False,
    sources: Sequence[str] = (),
) -> "tuple[Autoencoder, RunFolder, dict[str, Any]]":
    """The model, its run folder and results with the attractors: those on disk, or found now.

    A model from a run that is on disk already may still lack its decoder. `sources` of images are looked at before
    anything is computed, so that one that cannot be read costs nothing.
    """
    check_choice("measure", plan.get("measure"), MEASURES)
    check_choice("merge", plan.get("merge"), MERGES)
    check_choice("polish", plan.get("polish"), ("anderson",))
    began = time.perf_counter()
    out = out or default_out(name)
    # What was asked for, before anything is computed: the run's identity. Defaults follow from it and the device.
    manifest = {"model": canonical(name), "seed": seed, **named(load), **plan, "fmprobe": fmprobe.__version__}
    model = load_model(name, **load)
    manifest |= identity(model)
    for source in sources:
        model.load_images(source, 1)
    folder = open_folder(out, manifest, resume, verbose)
    if folder.results is not None:
        typer.echo(f"{out} holds this run already (--no-resume runs it again)")
        shutil.rmtree(folder.path / "shards", ignore_errors=True)  # where a kill came just before
    else:
        model = with_decoder(model, seed)
        with at_work(folder):
            _compute(model, folder, plan, seed, began)
    return model, folder, folder.results or {}


def open_folder(out: Path, manifest: Mapping[str, Any], resume: bool, verbose: bool = False) -> RunFolder:
    """The run folder, opened by the main process; the others find what it left there."""
    from fmprobe.sharing import team

    with team().main_first():
        folder = RunFolder.open(out, manifest, resume) if is_main() else RunFolder(out)
    folder.heard = (lambda line: typer.echo(line, err=True)) if verbose else None
    return folder


@contextmanager
def at_work(folder: RunFolder) -> Iterator[None]:
    """While this launch's processes work in a folder, which the main one keeps others out of."""
    if not is_main():
        yield
        return
    with folder.locked():
        folder.tell("begin", processes=launched())
        yield


def default_out(name: str, suffix: str = "") -> Path:
    """Where results go when nobody says: `runs/` and the last part of the model's name."""
    return Path("runs") / f"{Path(canonical(name)).name or 'model'}{suffix}"


def named(load: Mapping[str, Any]) -> dict[str, Any]:
    """How a model is loaded, as a manifest holds it: its decoder under the one name of its folder."""
    return {**load, **{key: canonical(load[key]) for key in ("decoder",) if load.get(key) is not None}}


def identity(model: "Autoencoder") -> dict[str, str | None]:
    """What decides a model's values, as a manifest holds it: a checkpoint or a decoder may change under its name."""
    decoder = None if model.surrogate is None else model.surrogate.fingerprint
    return {"fingerprint": model.fingerprint, "decoder_fingerprint": decoder}


def load_model(name: str, *, image_size: int | None, **arguments: Any) -> "Autoencoder":
    """`fmprobe.load` as the command line uses it: small images on a CPU, and no progress bar for a local file."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = fmprobe.load(name, image_size=image_size or "fit", **arguments)
    images = f"images {_times(model.image_shape)}" if model.image_shape else "no images"
    typer.echo(f"{model.name}: {images}, latents {_times(model.latent_shape)}, {model.device}")
    if not model.image_shape:
        if image_size is not None:
            raise InputError(f"{model.name} takes no images: leave --image-size out")
        typer.echo(f"latents: {model.provenance['space']}")
        return model
    side = model.image_shape[-1]
    native = (model.provenance.get("preprocessing") or {}).get("size", side)
    if image_size is None and side < native:
        typer.echo(f"no accelerator: images of {side} px instead of {native} (--image-size {native} for the full size)")
    return model


def with_decoder(model: "Autoencoder", seed: int) -> "Autoencoder":
    """The model itself if it has a latent map, else with a surrogate decoder from the cache, or fitted now."""
    if model.has_latent_map:
        return model
    from fmprobe.surrogates.cache import cached_decoder
    from fmprobe.surrogates.fit import FitSettings

    typer.echo("the encoder has no decoder: fitting one on procedural images (kept for the next time)")
    settings = replace(FitSettings.for_device(model.device), seed=seed)
    began = time.perf_counter()
    decoder, was_cached = cached_decoder(model, settings, progress=is_main())
    how = "found in the cache" if was_cached else f"fitted in {time.perf_counter() - began:.0f} s"
    typer.echo(f"decoder {how}; validation: {validation_line(decoder)}")
    whole = model.with_decoder(decoder)
    warn({"decoder": whole.provenance["decoder"]})
    return whole


def _compute(model: "Autoencoder", folder: RunFolder, plan: Mapping[str, Any], seed: int, began: float) -> None:
    """Find the attractors, all processes together; the main one writes the results."""
    from fmprobe.probes.prototypes import save_film, save_painted, save_prototypes
    from fmprobe.sharing import team

    found, made = search(model, folder, plan, seed, "shards")
    if found is not None:
        found.attractors.save(folder.path / "attractors")
        if found.images is not None:
            save_prototypes(found.images, found.attractors, folder.path)
        if found.film is not None:
            save_film(found.film, folder.path)
        shown = save_painted(model, folder.path, made.batch_size)
        rules = found.attractors.orbits.protocol["rules"]
        protocol = {"starts": "N(0, I)", **asdict(made), "rules": rules}
        seconds = round(time.perf_counter() - began, 1)
        results = {**head(model, protocol), **found.to_dict(), **shown, "total_seconds": seconds}
        folder.finish(results)
        shutil.rmtree(folder.path / "shards", ignore_errors=True)
    team().barrier()


def search(
    model: "Autoencoder", folder: RunFolder, plan: Mapping[str, Any], seed: int, name: str, **settings: Any
) -> "tuple[Prototypes | None, Plan]":
    """The attractors from noise, found by all processes, and the plan; for the main process alone the former is there.

    The plan is pinned when a search begins, since its defaults follow from how fast the machine was then; the versions
    and the decoder with it. Raises InputError where a search that goes on would go on with others.
    """
    from fmprobe.probes.prototypes import Plan, make_plan, run_prototypes
    from fmprobe.sharing import team

    with team().main_first():
        made = Plan(**folder.pin(name, lambda: asdict(replace(make_plan(model, seed=seed, **plan), **settings))))
        pin_circumstances(model, folder, name)
    typer.echo(
        f"{made.n} starts from N(0, I), at most {made.max_steps} steps of {1000 * made.seconds_per_row:.1f} ms: "
        f"about {_minutes(made.likely_seconds)}, at most {_minutes(made.most_seconds)}, then the Jacobians"
    )
    return run_prototypes(model, made, folder, team(), name), made


def pin_circumstances(model: "Autoencoder", folder: RunFolder, name: str) -> None:
    """Refuse to go on under other versions, on another kind of device or with another decoder than a search began.

    The main process looks; what the others fitted together with it differs in the seconds that it took them.
    """
    if not is_main():
        return
    import torch
    import transformers

    now = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "device": model.device.type,
        "decoder": model.provenance.get("decoder"),
        "revision": model.provenance.get("revision"),
    }
    pinned = folder.pin(f"{name}: circumstances", lambda: now)
    if (changed := differences(pinned, finite(json.loads(json.dumps(now)))[0])) != "":
        raise InputError(f"{folder.path} was begun otherwise ({changed}): name another --out, or --no-resume")


def head(model: "Autoencoder", protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What every `results.json` begins with."""
    provenance = {**model.provenance, "fingerprint": model.fingerprint}
    decoder = provenance.pop("decoder")
    if decoder and decoder.get("kind") == "surrogate":
        decoder = {**decoder, "warning": model.surrogate_warning}
    return {
        "fmprobe": fmprobe.__version__,
        "command": shlex.join(["fmprobe", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": str(model.device),
        "model": {
            "id": provenance.pop("model"),
            **provenance,
            "image_shape": list(model.image_shape),
            "latent_shape": list(model.latent_shape),
        },
        "decoder": decoder,
        "decodes_to_images": model.has_decoder,
        "protocol": dict(protocol),
    }


def check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    """Raise InputError where an option has a value that is none of its choices."""
    if value is not None and value not in choices:
        raise InputError(f"--{name} {value!r} is not known: expected one of {', '.join(choices)}")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def validation_line(surrogate: "Surrogate") -> str:
    """A surrogate's error on images it was not trained on, beside that of each image's own median colour."""
    rows = surrogate.info["validation"]
    return "; ".join(f"{name.replace('_', ' ')}: {_errors(row)}" for name, row in rows.items())


def _errors(row: Mapping[str, float]) -> str:
    if "l1" not in row:
        return f"relative feature error {number(row['feature_error'], '.3f')}"
    return f"L1 {number(row['l1'], '.3f')} (median colour {number(row['l1_median'], '.3f')})"
