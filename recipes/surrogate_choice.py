"""Choose the surrogate that `probe` should take by default, by a rule that was written before the table.

    python recipes/surrogate_choice.py --model ../shared/models/dinov2-small --out runs/choice-dinov2
    python recipes/surrogate_choice.py --model M --null none             # an encoder that is random itself
    python recipes/surrogate_choice.py --model M --photos photos:test    # paints these images as well

Candidates: the transformer that is trained today ("trained"); the same with a second stage of feature consistency
("consistent"); in closed form the bottleneck of k components ("bottleneck") and the ridge form of all features
("ridge"). Each is fitted for every seed, on two disjoint sets of images, with one and two threads, and once to random
weights of the architecture (the null).

For each candidate the table has

(a) painting: how far the L1 error on held-out procedural images lies below that of each image's own median colour, and
    the same on images of `--photos`, which the rule does not look at;
(b) the relative feature error ||E(D(z)) - z|| / ||z||;
(c) the reading of N(0, I) starts (regime, exponent, share settled, number of attractors) over threads, seeds and sets,
    and how many attractors match those of the first fit, one to one, in the pictures that are painted of them;
(d) separation: the difference between the mean exponents of the encoder and of the null, over the standard deviation of
    the exponent between the surrogates of the encoder;
(e) seconds, and the largest memory of the process.

The rule. Among the candidates that paint at least 15% below the median colour in every fit, and whose regime is the
same in all of (c), the one with the largest (d) is chosen. If two lie within 10% of each other in (d), the one that
takes less time is. If no candidate passes, none is chosen, and the nearest is named: the one that fails in the fewest
fits.

`--out` keeps every fit, and the same command continues from there. Launched processes share the fits.
"""

import argparse
import math
import resource
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

import fmprobe
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.merging import THRESHOLDS
from fmprobe.dynamics.readings import read_orbits
from fmprobe.probes.capacity.diagram import OTHER_IMAGES, paired, pictures_of
from fmprobe.runs.sweeps import sweep
from fmprobe.sharing import is_main, together
from fmprobe.surrogates.fit import validate

DEMO = files("fmprobe.demo") / "vit-mae-digits"
CANDIDATES: dict[str, dict[str, Any]] = {
    "trained": {"kind": "pixel"},
    "consistent": {"kind": "pixel", "consistency_steps": 200},
    "bottleneck": {"kind": "closed-form"},
    "ridge": {"kind": "closed-form"},
}
HEAD = ("candidate", "fits", "below the median colour", "photos", "feature error", "regimes", "settled", "attractors")
HEAD += ("matched", "exponent", "null", "(d)", "s", "MB")
PAINTS, CLOSE = 0.15, 0.1  # of the rule: share below the median colour, and what counts as a tie in separation
EXPONENTS = {"cap": 4, "steps": 40, "burn_in": 20, "method": "twin orbits"}


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hub id or folder of an encoder. [default: the demo model's]")
    parser.add_argument("--image-size", type=int, help="Image side in pixels. [default: the processor's; on a CPU 112]")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), help="What is tried.")
    parser.add_argument("--k", type=int, default=64, help="Number of components of the bottleneck.")
    parser.add_argument("--images", type=int, help="Number of training images. [default: by kind and device]")
    parser.add_argument(
        "--steps", type=int, help="Number of training steps of trained candidates. [default: by device]"
    )
    parser.add_argument("--seeds", type=int, default=5, help="Number of seeds, from 0.")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="Numbers of threads.")
    parser.add_argument("--starts", type=int, default=8, help="Number of noise starts.")
    parser.add_argument("--max-steps", type=int, default=60, help="Largest number of steps of an orbit.")
    parser.add_argument("--null", choices=("random", "none"), default="random", help="Whether a null is fitted.")
    parser.add_argument("--photos", help="Images that every fit paints as well, SOURCE[:split][#column].")
    parser.add_argument("--out", type=Path, default=Path("runs/surrogate_choice"), help="Folder for the results.")
    arguments = parser.parse_args()

    conditions = {f"{c['candidate']} {c['what']} {c['seed']}": c for c in conditions_of(arguments)}
    fits = [found for _, found in sweep(fitted, conditions, arguments.out, in_turn=True)]
    rows = {name: row_of([fit for fit in fits if fit["candidate"] == name]) for name in arguments.candidates}
    if not is_main():
        return
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for name, row in rows.items():
        print(f"| {name} | {row['fits']} | " + " | ".join(cells(row)) + " |")
    chosen, reason = choose(rows)
    print(f"\nchosen by the rule: {chosen or 'none'} ({reason})")


def conditions_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every fit: for each candidate the seeds on images A, images B, other numbers of threads, and the null."""
    first, *others = arguments.threads
    encoder = {"model": arguments.model, "image_size": arguments.image_size, "photos": arguments.photos}
    search = {"starts": arguments.starts, "max_steps": arguments.max_steps}
    found = []
    for candidate in arguments.candidates:
        settings = {**CANDIDATES[candidate], "n_images": arguments.images}
        if settings["kind"] == "pixel":
            settings["steps"] = arguments.steps
        elif candidate == "bottleneck":
            settings["k"] = arguments.k
        tried = [("A", seed, first, False) for seed in range(arguments.seeds)] + [("B", 0, first, False)]
        tried += [(f"A, {threads} threads", 0, threads, False) for threads in others]
        tried += [("null", 0, first, True)] * (arguments.null == "random")
        for what, seed, threads, null in tried:
            images = seed + OTHER_IMAGES if what == "B" else seed
            condition = {"candidate": candidate, "what": what, "seed": seed, "threads": threads, "null": null}
            found.append({**condition, "images_seed": images, "settings": settings, **encoder, **search})
    return found


def fitted(_: str, condition: dict[str, Any]) -> dict[str, Any]:
    """One fit: how it paints, and the reading of its latent map."""
    torch.set_num_threads(condition["threads"])
    model = encoder_of(condition["model"], condition["image_size"], condition["null"])
    began = time.perf_counter()
    given = {name: value for name, value in condition["settings"].items() if value is not None}
    surrogate = fmprobe.fit_decoder(model, seed=condition["images_seed"], progress=False, **given)
    whole = model.with_decoder(surrogate)
    attractors = fmprobe.find_attractors(
        whole,
        condition["starts"],
        seed=condition["seed"],
        tol=1e-5,
        max_steps=condition["max_steps"],
        batch_size=32,
        stability_cap=2,
        progress=False,
    )
    readings = read_orbits(whole, attractors, batch_size=32, progress=False, **EXPONENTS).to_dict()
    error = surrogate.info["validation"]["held_out"]
    photos = condition["photos"] and validate(model, surrogate, model.load_images(condition["photos"]))
    return {
        "candidate": condition["candidate"],
        "null": condition["null"],
        "below_median": below_median(error),
        "photos": below_median(photos) if photos else None,
        "feature_error": error["feature_error"],
        "regime": readings["regime"],
        "exponent": readings["median"],
        "settled": int(attractors.orbits.converged.sum()) / condition["starts"],
        "attractors": attractors.count,
        "pictures": kept(pictures_of(whole, attractors.latents)),
        "seconds": time.perf_counter() - began,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def kept(pictures: Tensor) -> str:
    """Pictures as text that a result file holds."""
    return b64encode(save({"pictures": pictures.half()})).decode()


def matched(fits: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """How many attractors of the later fits have a partner among those of the first, and of how many.

    Two match where their pictures differ by no more than the merge threshold of searches, relative to their size.
    """
    first, *others = [load(b64decode(fit["pictures"]))["pictures"].double() for fit in fits]
    pairs = [int((paired(first, other) <= THRESHOLDS["relative"]).sum()) for other in others]
    return sum(pairs), sum(max(len(first), len(other)) for other in others)


def below_median(error: Mapping[str, float]) -> float:
    """The share by which an L1 error lies below that of the median colour."""
    return 1 - error["l1"] / error["l1_median"]


@cache
def encoder_of(name: str | None, image_size: int | None, null: bool) -> Autoencoder:
    """The encoder, or the demo model's without its own decoder; with random weights for the null."""
    weights: dict[str, Any] = {"random_weights": 0} if null else {}
    if name is not None:
        return fmprobe.load(name, image_size=image_size or "fit", device="cpu", **weights)
    model = fmprobe.load(str(DEMO), image_size=image_size, device="cpu", **weights)
    return model.derived(encode=model.encode_unchecked, decoder=None)


def row_of(fits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the rule sees of a candidate, from its fits."""
    own, null = [fit for fit in fits if not fit["null"]], [fit for fit in fits if fit["null"]]
    exponents = [fit["exponent"] for fit in own if fit["exponent"] is not None]
    nulls = [fit["exponent"] for fit in null if fit["exponent"] is not None]
    spread = pstdev(exponents) if exponents else 0.0
    separation = None
    if exponents and nulls:
        difference = abs(mean(exponents) - mean(nulls))
        separation = difference / spread if spread else math.inf
    photos = [fit["photos"] for fit in own if fit["photos"] is not None]
    regimes = [str(fit["regime"]) for fit in own]
    usual = max(regimes, key=regimes.count)
    return {
        "fits": len(own),
        "below_median": min(fit["below_median"] for fit in own),
        "photos": min(photos, default=None),
        "feature_error": median(fit["feature_error"] for fit in own),
        "regimes": {regime: regimes.count(regime) for regime in dict.fromkeys(regimes)},
        "settled": mean(fit["settled"] for fit in own),
        "attractors": sorted({"unknown" if fit["attractors"] is None else str(fit["attractors"]) for fit in own}),
        "matched": matched(own),
        "exponent": mean(exponents) if exponents else None,
        "spread": spread,
        "null": mean(nulls) if nulls else None,
        "separation": separation,
        "seconds": median(fit["seconds"] for fit in own),
        "megabytes": max(fit["megabytes"] for fit in own),
        "failed": sum(fit["below_median"] < PAINTS or fit["regime"] != usual for fit in own),
    }


def choose(rows: Mapping[str, Mapping[str, Any]]) -> tuple[str | None, str]:
    """The candidate that the rule chooses, or None; and why."""
    passed = {name: row for name, row in rows.items() if not row["failed"] and row["separation"] is not None}
    if not passed and (known := [name for name, row in rows.items() if not row["failed"]]):
        return None, f"{', '.join(known)} paint and agree as asked for, but without a null (d) is not known"
    if not passed:
        nearest = min(rows, key=lambda name: (rows[name]["failed"], -rows[name]["below_median"]))
        failed, of = rows[nearest]["failed"], rows[nearest]["fits"]
        return None, f"the nearest is {nearest}, which fails in {failed} of {of} fits"
    best = max(row["separation"] for row in passed.values())
    level = [name for name, row in passed.items() if row["separation"] >= (1 - CLOSE) * best]
    chosen = min(level, key=lambda name: passed[name]["seconds"])
    return chosen, f"separation {passed[chosen]['separation']:.1f}, of {len(passed)} that pass"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table as text."""

    def figure(value: float | None, spec: str) -> str:
        return "–" if value is None else format(value, spec)

    return [
        f"{row['below_median']:.0%}",
        figure(row["photos"], ".0%"),
        f"{row['feature_error']:.2f}",
        ", ".join(f"{count} {regime}" for regime, count in row["regimes"].items()),
        f"{row['settled']:.0%}",
        ", ".join(row["attractors"]),
        "{} of {}".format(*row["matched"]),
        f"{figure(row['exponent'], '.3f')} ± {row['spread']:.3f}",
        figure(row["null"], ".3f"),
        figure(row["separation"], ".1f"),
        f"{row['seconds']:.0f}",
        f"{row['megabytes']:.0f}",
    ]


if __name__ == "__main__":
    main()
