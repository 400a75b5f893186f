"""Compare attractors with training images across bottlenecks (Fumero et al., ICLR 2026, fig. 2, 13, 14).

    python recipes/memorization.py                                     # scikit-learn's digits, 3 bottlenecks, 1 minute
    python recipes/memorization.py --data ../shared/data               # 6 bottlenecks on 3 data sets
    python recipes/memorization.py --data ../shared/data --vary-images # fig. 14: k = 128, more and more images
    python recipes/memorization.py --full                              # the paper's protocol, from the hub, on a GPU

1. One convolutional autoencoder is trained for every data set and bottleneck k.
2. Its attractors are sought from encoded training images and from N(0, I).
3. Each decoded attractor is compared with its nearest training image, beside images that nothing memorized.

The recipe prints the table. `--out` keeps it with curves and one JSON file for each network.
"""

import argparse
from itertools import product
from typing import Any

from _figures import save
from _shared import FULL, REDUCED, SMALLEST, add_protocol, epochs_of, fill, loaded, parser_of, train, untrained
from torch import Tensor

import fmprobe
from fmprobe.probes.memorization.page import memorization_sweep
from fmprobe.runs.sweeps import sweep
from fmprobe.seeding import seed_torch
from fmprobe.sharing import is_main, together

SETS = ("mnist", "fashion_mnist", "cifar10")
PUBLISHED = FULL | {"ks": [2**i for i in range(1, 10)]}
DEFAULT = REDUCED | {"ks": [2, 8, 16, 32, 128, 512], "starts": 128, "max_steps": 1000}
DIGITS = SMALLEST | {"ks": [2, 8, 32], "starts": 100, "max_steps": 1000}
VARIED = [50, 100, 200, 500, 1000, 2000]  # training images of fig. 14
HEADER = ("set", "k", "images", "test MSE", "starts", "settled", "count", "cosine", "test images", "decoded starts")
HEADER += ("rank",)


def trained(images: Tensor, arguments: argparse.Namespace) -> fmprobe.Autoencoder:
    """Trained by the same number of steps whatever the number of images, so that the images are all that differs."""
    seed_torch(arguments.seed, "memorization recipe: weights")
    network = untrained(images, arguments)
    epochs = epochs_of(arguments.steps, images, arguments.batch_size)
    train(network, images, arguments, epochs=epochs, seed=arguments.seed)
    return network.requires_grad_(False).autoencoder()


def measured(_: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The memorization of one network, by the kind of start that its attractors were sought from."""
    arguments = argparse.Namespace(**settings)
    images, test = loaded(arguments.set, arguments.data, arguments.images, arguments.test)
    images = images[: arguments.n]
    model = trained(images, arguments)
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
    return found


def line(name: str, k: int, n: int, start: str, entry: dict[str, Any]) -> str:
    def level(row: str) -> str:
        value = entry["levels"]["cosine"][row]
        return f"{value['mean']:.3f} ± {value['std']:.3f}" if value else "none"

    orbits = entry["orbits"]
    settled = f"{orbits['status']['converged'] / orbits['starts']:.0%}"
    cells = [name, str(k), str(n), f"{entry['errors']['test']:.4f}", start, settled, str(entry["count"])]
    cells += [level("attractors"), level("test images"), level("decoded starts"), str(entry["rank"]["attractors"])]
    return "| " + " | ".join(cells) + " |" + (" *" if entry["warning"] else "")


@together()
def main() -> None:
    parser = parser_of("memorization", __doc__, "Use all images of the hub's sets, 500 epochs and 5000 starts.")
    parser.add_argument("--sets", nargs="+", choices=("digits", *SETS), help="Data sets.")
    parser.add_argument("--vary-images", action="store_true", help="Vary the number of training images at k = 128.")
    parser.add_argument("--ks", type=int, nargs="+", help="Bottlenecks.")
    add_protocol(parser)
    parser.add_argument("--seed", type=int, default=0, help="Seed of the weights, the training and the starts.")
    arguments = parser.parse_args()
    preset = PUBLISHED if arguments.full else DIGITS if arguments.data is None else DEFAULT
    fill(arguments, preset)
    sets = arguments.sets or (["digits"] if preset is DIGITS else SETS)

    given = {name: getattr(arguments, name) for name in (*preset, "data", "device", "seed") if name != "ks"}
    given["test"] = None if arguments.full else 300
    conditions: dict[str, dict[str, Any]] = {}
    for name in sets:
        images, _ = loaded(name, arguments.data, arguments.images, given["test"])
        counts = [n for n in VARIED if n <= len(images)] if arguments.vary_images else [len(images)]
        for n, k in product(counts, [128] if arguments.vary_images else arguments.ks):
            conditions[f"{name}-k{k}-{n}"] = {**given, "set": name, "n": n, "k": k}

    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in sets}
    for name, found in sweep(measured, conditions, arguments.out):
        k, n, own = (conditions[name][key] for key in ("k", "n", "set"))
        for start, entry in found.items():
            print(line(own, k, n, start, entry), flush=True)
        rows[own].append({"k": k, "images": n, **found})
    along = "images" if arguments.vary_images else "k"
    for name in sets if is_main() else ():
        one = "k = 128" if arguments.vary_images else f"{rows[name][0]['images']} training images"
        about = [f"convolutional autoencoders, seed {arguments.seed}", name, one]
        about.append(f"{arguments.starts} starts of each kind")
        save(memorization_sweep(rows[name], along), arguments.out, f"{name}-by-{along}", about)
    print("* f may be near constant, or no orbit settled: see `warning` in the network's JSON file")


if __name__ == "__main__":
    main()
