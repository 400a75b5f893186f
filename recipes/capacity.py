"""Follow orbits over the capacity of a decoder in closed form, on encoders by name (the axis of fig. 2), over seeds.

    python recipes/capacity.py                                                  # the demo model's encoder, 10 seconds
    python recipes/capacity.py --encoders ../shared/models/dinov2-small ../shared/models/efficientnet-lite1

1. For each seed, decoders in closed form are fitted to two disjoint sets of procedural images, A and B, and to random
   weights of the same architecture, the null. A decoder keeps k principal components of the features, or all features.
2. Orbits from N(0, I) are followed under each: how many settle, and their largest Lyapunov exponent.

The recipe prints the table of `fmprobe capacity` for each encoder and seed. `--out` keeps the diagrams.

Rules by which `evidence.py` decides, written before the runs; `_rules.py` says when each agrees:

- "exponent" rises with "k", for each of "encoder" alone: rank correlation.
- "with all features, A and B chaotic and the null 3 standard errors away" holds for more than half of the seeds, for
  each of "encoder" alone: binomial test.
- "every attractor of A has its partner in B" holds for more than half of the rows, for each of "encoder" alone:
  binomial test.
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import _figures
from surrogate_choice import encoder_of

import fmprobe
from fmprobe.dynamics.readings import Regime
from fmprobe.probes.capacity.diagram import NULL, A
from fmprobe.probes.capacity.reading import APART
from fmprobe.report.summary import tables
from fmprobe.runs.sweeps import results_in, sweep
from fmprobe.sharing import together
from fmprobe.tables import as_text

ALL_FEATURES = "with all features, A and B chaotic and the null 3 standard errors away"
PARTNERS = "every attractor of A has its partner in B"


def diagram(name: str, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    given = {key: settings[key] for key in ("ks", "n_images", "starts", "max_steps", "seed")}
    encoder = encoder_of(settings["model"], None, null=False)
    found = fmprobe.probe_capacity(encoder, progress=False, **given)
    _figures.save(
        found.draw(), out, name, [settings["encoder"], f"{settings['n_images']} images a set, seed {settings['seed']}"]
    )
    return found.to_dict()


def evidence(folder: Path) -> list[dict[str, Any]]:
    """The figures of each set of images and k of a finished run, for `evidence.py`."""
    rows = []
    for content in results_in(folder):
        settings, found = content["settings"], content["result"]
        null = {point["k"]: point for point in found["capacity"] if point["set"] == NULL}
        matched = {one["k"]: one["of"] > 0 and one["of"] == one["matched"] for one in found["agreement"]}
        said = found["what_survives"]
        away = said["apart"] is not None and abs(said["apart"]) >= APART and said["full"] == Regime.CHAOTIC.label
        for point in found["capacity"]:
            if point["set"] != NULL:
                k, ridge = point["k"], point["form"] == "ridge"
                row = {"encoder": settings["encoder"], "seed": settings["seed"], "set": point["set"], "k": k}
                row |= {"exponent": point["exponent"], "of random weights": null[k]["exponent"] if k in null else None}
                row |= {"settled": point["settled"] / point["starts"], "attractors": point["attractors"]}
                row["below the median colour"] = 1 - point["l1"] / point["l1_median"]
                row |= {ALL_FEATURES: away if ridge else None, PARTNERS: matched.get(k) if point["set"] == A else None}
                rows.append(row)
    return rows


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", help="Hub ids or folders of encoders. [default: the demo model's]")
    parser.add_argument("--ks", type=int, nargs="+", default=[16, 64, 256], help="Numbers of components.")
    parser.add_argument("--images", type=int, default=512, help="Number of procedural images in each set.")
    parser.add_argument("--starts", type=int, default=8, help="Number of noise starts.")
    parser.add_argument("--max-steps", type=int, default=40, help="Largest number of steps of an orbit.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="Seeds of the images and of the starts.")
    parser.add_argument("--out", type=Path, default=Path("runs/capacity"), help="Folder for the results.")
    _figures.add_figure_options(parser)
    arguments = parser.parse_args()
    ks = arguments.ks if arguments.encoders else [k for k in arguments.ks if k < 64]  # the demo model has 128 features
    given = {"ks": ks, "n_images": arguments.images, "starts": arguments.starts, "max_steps": arguments.max_steps}
    conditions = {}
    for model, seed in product(arguments.encoders or [None], arguments.seeds):
        encoder = "demo" if model is None else Path(model).name
        conditions[f"{encoder}-seed{seed}"] = {**given, "model": model, "encoder": encoder, "seed": seed}
    for name, found in sweep(partial(diagram, out=arguments.out), conditions, arguments.out):
        print(f"\n{name}\n{as_text(tables(found, 'what_survives', 'capacity', 'agreement'))}")


if __name__ == "__main__":
    main()
