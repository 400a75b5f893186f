"""Compare attractors with training images across bottlenecks (Fumero et al., ICLR 2026, fig. 2, 13, 14).

    python recipes/memorization.py                                     # scikit-learn's digits, 3 bottlenecks, 1 minute
    python recipes/memorization.py --data ../shared/data               # 6 bottlenecks on 3 data sets
    python recipes/memorization.py --data ../shared/data --vary-images # fig. 14: k = 128, more and more images
    python recipes/memorization.py --full                              # the paper's protocol, from the hub, on a GPU

1. One convolutional autoencoder is trained for every data set and bottleneck k.
2. Its attractors are sought from encoded training images and from N(0, I).
3. Each decoded attractor is compared with its nearest training image, beside images that nothing memorized.

The recipe prints the table. `--out` keeps it with curves and one JSON file for each network.

Rules by which `evidence.py` decides, written before the runs; `_rules.py` says when each agrees:

- "coefficient" falls with "k", for each of "set" alone: rank correlation.
- "test error" falls with "k", for each of "set" alone: rank correlation.
- "coefficient" rises with "test error", for each of "set" alone: rank correlation.
- "coefficient less that of the mean image" is positive for more than half of the rows, for each of "set" alone: sign
  test.
- "coefficient less that of the test images" is positive for more than half of the rows, for each of "set" alone: sign
  test.
- "rank" rises with "k", for each of "set" alone: rank correlation.
- "bound as printed" holds for more than 90% of the rows: binomial test. It takes the networks of all sets together,
  since 27 of a set could not show more than 90%.
- "coefficient" falls with "images", for each of "set" alone: rank correlation.
- "coefficient less that of the test images" falls with "images", for each of "set" alone: rank correlation.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from _figures import save
from _shared import FULL, REDUCED, SMALLEST, add_protocol, epochs_of, fill, loaded, parser_of, train_until, untrained
from torch import Tensor

import fmprobe
from fmprobe.probes.memorization.page import memorization_sweep
from fmprobe.runs.sweeps import results_in, sweep
from fmprobe.seeding import seed_torch
from fmprobe.sharing import is_main, together

SETS = ("mnist", "fashion_mnist", "cifar10")
PUBLISHED = FULL | {"ks": [2**i for i in range(1, 10)]}
DEFAULT = REDUCED | {"ks": [2, 8, 16, 32, 128, 512], "starts": 128, "max_steps": 1000}
DIGITS = SMALLEST | {"ks": [2, 8, 32], "starts": 100, "max_steps": 1000}
VARIED = [10, 30, 100, 300, 1000, 3000]  # training images of fig. 14, and then all that there are
HEADER = ("set", "k", "images", "seed", "epochs", "test MSE", "starts", "settled", "count", "cosine", "test images")
HEADER += ("decoded starts", "rank")


def sets_of(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Training images, test images, and with `--patience` the last sixth of the test set, which ends the training."""
    n_test = None if arguments.patience else arguments.test
    images, test = loaded(arguments.set, arguments.data, arguments.images, n_test)
    sixth = len(test) // 6 if arguments.patience else 0
    test, validation = test[: len(test) - sixth], test[len(test) - sixth :]
    return images[: arguments.n], test[: arguments.test], validation


def measured(_: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The epochs of one network, and its memorization by the kind of start that its attractors were sought from.

    Without a patience the number of steps is the same for all numbers of images, so that only the images differ.
    """
    arguments = argparse.Namespace(**settings)
    images, test, validation = sets_of(arguments)
    seed_torch(arguments.seed, "memorization recipe: weights")
    network = untrained(images, arguments)
    limit = epochs_of(arguments.steps, images, arguments.batch_size)
    epochs = train_until(network, images, validation, arguments, epochs=limit, seed=arguments.seed)
    model = network.requires_grad_(False).autoencoder()
    starts = {
        "train": model.encode(images[: arguments.starts]),
        "noise": model.sample_latents(arguments.starts, arguments.seed),
    }
    found = {}
    for name, latents in starts.items():
        attractors = fmprobe.find_attractors(
            model, starts=latents, max_steps=arguments.max_steps, merge="cosine", stability_cap=16
        )
        found[name] = fmprobe.probe_memorization(model, images, test, attractors=attractors).to_dict()
    return {"epochs": epochs, "starts": found}


def evidence(folder: Path) -> list[dict[str, Any]]:
    """The figures of each network of a finished run, for `evidence.py`; attractors are those of training starts."""
    rows = []
    for content in results_in(folder):
        settings, found = content["settings"], content["result"]
        entry, noise = found["starts"]["train"], found["starts"]["noise"]
        orbits, coefficient = entry["orbits"], entry["coefficient"]
        levels = {name: entry["levels"]["cosine"][name]["mean"] for name in ("test images", "mean image")}
        row = {"set": settings["set"], "k": settings["k"], "images": settings["n"], "seed": settings["seed"]}
        row |= {"epochs": found["epochs"]["best"], "test error": entry["errors"]["test"], **levels}
        row |= {"settled": orbits["status"]["converged"] / orbits["starts"], "attractors": entry["count"]}
        row |= {"coefficient": coefficient, "coefficient of noise starts": noise["coefficient"]}
        for name, level in levels.items():
            row[f"coefficient less that of the {name}"] = None if coefficient is None else coefficient - level
        row["rank"] = entry["rank"]["attractors"]
        bounds = (entry["bound"] or {}).values()
        row["bound as printed"] = all(terms["holds_as_printed"] == 1 for terms in bounds) if bounds else None
        rows.append(row)
    return rows


def line(settings: dict[str, Any], epochs: dict[str, int], start: str, entry: dict[str, Any]) -> str:
    def level(row: str) -> str:
        value = entry["levels"]["cosine"][row]
        return f"{value['mean']:.3f} ± {value['std']:.3f}" if value else "none"

    orbits = entry["orbits"]
    settled = f"{orbits['status']['converged'] / orbits['starts']:.0%}"
    cells = [str(settings[name]) for name in ("set", "k", "n", "seed")] + [f"{epochs['best']} of {epochs['run']}"]
    cells += [f"{entry['errors']['test']:.4f}", start, settled, str(entry["count"])]
    cells += [level("attractors"), level("test images"), level("decoded starts"), str(entry["rank"]["attractors"])]
    return "| " + " | ".join(cells) + " |" + (" *" if entry["warning"] else "")


@together()
def main() -> None:
    parser = parser_of("memorization", __doc__, "Use all images of the hub's sets, 500 epochs and 5000 starts.")
    parser.add_argument("--sets", nargs="+", choices=("digits", *SETS), help="Data sets.")
    parser.add_argument("--vary-images", action="store_true", help="Vary the number of training images at k = 128.")
    parser.add_argument("--ks", type=int, nargs="+", help="Bottlenecks.")
    add_protocol(parser)
    words = "End a training whose validation error has not fallen for this many epochs. [default: train all steps]"
    parser.add_argument("--patience", type=int, help=words)
    arguments = parser.parse_args()
    preset = PUBLISHED if arguments.full else DIGITS if arguments.data is None else DEFAULT
    fill(arguments, preset)
    sets = arguments.sets or (["digits"] if preset is DIGITS else SETS)

    given = {name: getattr(arguments, name) for name in (*preset, "data", "device", "patience") if name != "ks"}
    given["test"] = None if arguments.full else 300
    conditions: dict[str, dict[str, Any]] = {}
    for name in sets:
        total = len(loaded(name, arguments.data, arguments.images, given["test"])[0])
        counts = [*(n for n in VARIED if n < total and arguments.vary_images), total]
        for n, k, seed in product(counts, [128] if arguments.vary_images else arguments.ks, arguments.seeds):
            conditions[f"{name}-k{k}-{n}-seed{seed}"] = {**given, "set": name, "n": n, "k": k, "seed": seed}

    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in sets}
    for name, found in sweep(measured, conditions, arguments.out):
        settings = conditions[name]
        for start, entry in found["starts"].items():
            print(line(settings, found["epochs"], start, entry), flush=True)
        rows[settings["set"]].append({"k": settings["k"], "images": settings["n"], **found["starts"]})
    along = "images" if arguments.vary_images else "k"
    for name in sets if is_main() else ():
        one = "k = 128" if arguments.vary_images else f"{rows[name][0]['images']} training images"
        about = [f"convolutional autoencoders, seeds {' '.join(map(str, arguments.seeds))}", name, one]
        about.append(f"{arguments.starts} starts of each kind")
        save(memorization_sweep(rows[name], along), arguments.out, f"{name}-by-{along}", about)
    print("* f may be near constant, or no orbit settled: see `warning` in the network's JSON file")


if __name__ == "__main__":
    main()
