"""Track how attractors form during training (Fumero et al., ICLR 2026, fig. 3; fig. 13 over epochs).

    python recipes/training_dynamics.py                                # scikit-learn's digits, k = 32, a minute
    python recipes/training_dynamics.py --data ../shared/data          # MNIST, k = 128
    python recipes/training_dynamics.py --full                         # the paper's protocol, from the hub, on a GPU

The recipe trains one convolutional autoencoder. At epochs 0, 1, 2, 4, 8, … and at the last one it finds the attractors
that training images, test images and N(0, I) lead to. It prints a line for each record. `--out` keeps the curves and
`records.jsonl`, which grows during the training.
"""

from typing import Any

import torch
from _figures import save
from _shared import FULL, REDUCED, SMALLEST, add_protocol, epochs_of, fill, loaded, parser_of, told, train, untrained

import fmprobe
from fmprobe.probes.training import training_curves
from fmprobe.seeding import seed_torch
from fmprobe.sharing import alone

PUBLISHED = FULL | {"k": 128}
DEFAULT = REDUCED | {"k": 128, "starts": 64, "max_steps": 500}
DIGITS = SMALLEST | {"k": 32, "starts": 32, "max_steps": 500}


def shown(value: float | None, places: int = 3) -> str:
    return "none" if value is None else f"{value:.{places}f}"


def line(record: dict[str, Any]) -> str:
    counts = [f"{record[kind]['count']} ({record[kind]['converged']:.0%})" for kind in ("train", "test", "noise")]
    matched, memory, radius = record["matched"] or {}, record["memorization"], record["spectral_radius"] or {}
    cells = [str(record["epoch"]), *counts, shown(record["chamfer"]), shown(matched.get("train"), 2)]
    cells += [shown(matched.get("noise"), 2), shown(record["fpr95"], 2)]
    cells += [shown((memory.get(kind) or {}).get("mean")) for kind in ("train", "noise")]
    cells += [shown(record["test_error"], 4), shown(radius.get("max"), 2), str(record["rank"].get("train"))]
    cells += [str(record["cost"]["evaluations"])]
    return "| " + " | ".join(cells) + " |"


HEADER = ("epoch", "train (settled)", "test", "noise", "Chamfer", "training met", "noise met", "FPR95", "mem. train")
HEADER += ("mem. noise", "test MSE", "max radius", "rank", "rows of f")


@alone()
def main() -> None:
    parser = parser_of("training_dynamics", __doc__, "Use all of MNIST from the hub, 500 epochs and 5000 starts.")
    parser.add_argument("--set", help="Data set: digits, mnist, fashion_mnist or cifar10.")
    parser.add_argument("--k", type=int, help="Bottleneck.")
    add_protocol(parser)
    parser.add_argument("--seed", type=int, default=0, help="Seed of the weights, the training and the starts.")
    arguments = parser.parse_args()
    preset = PUBLISHED if arguments.full else DIGITS if arguments.data is None else DEFAULT
    fill(arguments, preset)
    name = arguments.set or ("digits" if preset is DIGITS else "mnist")

    images, test = loaded(name, arguments.data, arguments.images, None if arguments.full else 300)
    epochs = epochs_of(arguments.steps, images, arguments.batch_size)
    path = arguments.out / "records.jsonl"
    path.unlink(missing_ok=True)
    tracker = fmprobe.AttractorTracker(
        images,
        test,
        starts=arguments.starts,
        epochs={0, epochs, *(2**i for i in range(epochs.bit_length()) if 2**i < epochs)},
        path=path,
        seed=arguments.seed,
        max_steps=arguments.max_steps,
    )

    def track(epoch: int, model: torch.nn.Module) -> None:
        if (record := tracker(epoch, model)) is not None:
            print(line(record), flush=True)

    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    seed_torch(arguments.seed, "training_dynamics recipe: weights")
    train(untrained(images, arguments), images, arguments, epochs=epochs, seed=arguments.seed, callback=track)
    about = [*told(arguments, images, name), f"{arguments.starts} starts of each kind"]
    save(training_curves(tracker.records), arguments.out, "curves", about)
    seconds = sum(record["cost"]["seconds"] for record in tracker.records)
    print(f"{name}: {len(tracker.records)} records of {arguments.starts} starts a kind, {seconds:.0f} s of tracking")


if __name__ == "__main__":
    main()
