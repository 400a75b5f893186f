"""Compare the latent vector fields of two seeds, or of two architectures (an open question of Fumero et al., sec. 6).

    python recipes/alignment.py                                          # scikit-learn's digits, k = 2 and 8, 2 minutes
    python recipes/alignment.py --data ../shared/data --sets mnist --ks 2 8 32
    python recipes/alignment.py --data ../shared/data --sets mnist --weight-decay 1e-2
    python recipes/alignment.py --across                                 # a convolutional and a fully connected network
    python recipes/alignment.py --full                                   # MNIST of the hub, 500 epochs; an accelerator

1. The paper's convolutional autoencoder is trained from two seeds for each pair, on the same images in two orders. With
   `--across` the second network of a pair is fully connected, with a bottleneck of the same size.
2. Maps between the two latent spaces are fitted on two thirds of the test images.
3. The fields are compared on the other third, beside a null and a ceiling. The null is a third seed of the second
   network without training. The ceiling is the first network under 1% of weight noise.

The recipe prints one table for each data set and bottleneck. `--out` keeps the tables and figures.

Rules by which `evidence.py` decides, written before the runs; `_rules.py` says when each agrees:

- "cosine less that of the null" is positive for more than half of the rows, for each of "map" alone: sign test.
- "adjusted Rand" is positive for more than half of the rows, for each of "map" alone: sign test.
"""

import argparse
import math
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from _figures import save
from _shared import epochs_of, fill, loaded, parser_of, told, train, untrained
from torch import Tensor

import fmprobe
from fmprobe.convolutional import BottleneckAutoencoder
from fmprobe.images import SMALL_SETS
from fmprobe.loading import pick_device
from fmprobe.probes.alignment.perturbation import perturbed
from fmprobe.report.summary import tables
from fmprobe.runs.sweeps import results_in, sweep
from fmprobe.seeding import seed_torch
from fmprobe.sharing import together
from fmprobe.tables import as_text


def network(images: Tensor, seed: int, arguments: argparse.Namespace, dense: bool) -> BottleneckAutoencoder:
    seed_torch(seed, "alignment recipe: weights")
    if not dense:
        return untrained(images, arguments)
    _, channels, height, width = images.shape
    return fmprobe.DenseAutoencoder(arguments.k, image_shape=(channels, height, width)).to(arguments.device)


def trained(
    images: Tensor, seed: int, arguments: argparse.Namespace, lines: list[str], dense: bool
) -> BottleneckAutoencoder:
    made = network(images, seed, arguments, dense)
    epochs = arguments.epochs or epochs_of(arguments.steps, images, arguments.batch_size, math.floor)
    losses = train(made, images, arguments, epochs=epochs, seed=seed)
    kind = "fully connected" if dense else "convolutional"
    lines.append(f"k = {arguments.k}, {kind}, seed {seed}: {epochs} epochs, loss {losses[-1]:.4f}")
    return made.requires_grad_(False)


def compare(name: str, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    arguments, lines = argparse.Namespace(**settings), []
    images, test = loaded(arguments.set, arguments.data, arguments.images, arguments.test)
    first = trained(images, arguments.seed, arguments, lines, dense=False)
    second = trained(images, arguments.seed + 1, arguments, lines, dense=arguments.across)
    null = network(images, arguments.seed + 2, arguments, dense=arguments.across)
    found = fmprobe.compare(
        first.autoencoder("seed A"),
        second.autoencoder("seed B"),
        test,
        null=null.eval().requires_grad_(False).autoencoder("untrained"),
        ceiling=perturbed(first, seed=arguments.seed).autoencoder("seed A with weight noise"),
        max_steps=arguments.max_steps,
        seed=arguments.seed,
    )
    lines.append(f"\n=== {arguments.set}, k = {arguments.k}: {len(images)} training images, {len(test)} to compare on")
    other = "a fully connected network of " if arguments.across else ""
    about = [*told(arguments, images), f"compared with {other}seed {arguments.seed + 1}"]
    save(found.draw(), out, name, [*about, f"{len(test)} images compared"])
    return {"told": lines, "alignment": found.to_dict()}


def evidence(folder: Path) -> list[dict[str, Any]]:
    """The figures of each pair of networks and map of a finished run, for `evidence.py`."""
    rows = []
    for content in results_in(folder):
        settings, found = content["settings"], content["result"]["alignment"]
        for name, figures in found["subject"]["maps"].items():
            row = {key: settings[key] for key in ("set", "k", "seed")} | {"map": name}
            cosines = [found[part]["maps"][name]["cosine"].get("q50") for part in ("subject", "null", "ceiling")]
            row |= dict(zip(("cosine", "cosine of the null", "cosine of the ceiling"), cosines, strict=True))
            row["cosine less that of the null"] = None if None in cosines[:2] else cosines[0] - cosines[1]
            rows.append(row | {"adjusted Rand": figures["basins"]["adjusted_rand"]})
    return rows


@together()
def main() -> None:
    parser = parser_of("alignment", __doc__, "Use all images of the hub's MNIST, width 32 and 500 epochs.", "auto")
    parser.add_argument("--sets", nargs="+", choices=("digits", *SMALL_SETS), help="Data sets.")
    parser.add_argument("--ks", type=int, nargs="+", help="Bottlenecks. [default: 2 8; 2 8 32 128 with --full]")
    parser.add_argument("--across", action="store_true", help="Compare with a fully connected network.")
    parser.add_argument("--images", type=int, help="Number of training images. [default: all digits, or 4000]")
    parser.add_argument("--test", type=int, default=300, help="Number of test images to compare on.")
    parser.add_argument("--width", type=int, help="Number of channels of the first layer. [default: 16]")
    parser.add_argument("--steps", type=int, default=2000, help="Number of training steps, without --full.")
    parser.add_argument("--batch-size", type=int, default=64, help="Number of images in a training step.")
    parser.add_argument("--learning-rate", type=float, help="Learning rate at the start. [default: 1e-3]")
    parser.add_argument("--weight-decay", type=float, default=1e-4, help="Weight decay of the training.")
    parser.add_argument("--max-steps", type=int, help="Largest number of steps of an orbit. [default: 1000]")
    words = "Seeds of first networks, one pair each. The second network and the null take the two seeds after it."
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help=words)
    arguments = parser.parse_args()
    arguments.device = str(pick_device(arguments.device))
    preset = {"epochs": None, "width": 16, "learning_rate": 1e-3, "max_steps": 1000}
    if arguments.full:
        preset = {"epochs": 500, "width": 32, "learning_rate": 5e-4, "max_steps": 3000}
        arguments.batch_size = 128
    fill(arguments, preset)
    sets = arguments.sets or (["mnist"] if arguments.full or arguments.data else ["digits"])
    ks = arguments.ks or ([2, 8, 32, 128] if arguments.full else [2, 8])
    given = {
        name: value for name, value in vars(arguments).items() if name not in ("sets", "ks", "seeds", "full", "out")
    }
    conditions = {}
    for name in sets:
        n = arguments.images or (None if arguments.full or name == "digits" else 4000)
        for k, seed in product(ks, arguments.seeds):
            conditions[f"{name}-{k}-seed{seed}"] = {**given, "set": name, "images": n, "k": k, "seed": seed}
    work = partial(compare, out=arguments.out)
    for _, found in sweep(work, conditions, arguments.out):
        print("\n".join(found["told"]))
        print(as_text(tables(found, "alignment")), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
