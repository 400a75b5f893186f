"""Map when noise attractors meet training attractors (an open question of Fumero et al., ICLR 2026, sec. 6).

    python recipes/noise_meets_training.py                                  # scikit-learn's digits, k = 8
    python recipes/noise_meets_training.py --data ../shared/data --set mnist

1. A middle condition is chosen. Width, weight decay, noise level (of a denoising autoencoder) and number of starts are
   changed from it, one at a time.
2. Under each condition a network is trained, and its attractors are tracked at a few epochs.
3. A training attractor is met where a noise attractor has a cosine above 0.99 with it, and the reverse.

The recipe prints both shares for each condition and epoch. `--out` keeps the records and the curves.
"""

import argparse
from dataclasses import asdict, dataclass, replace
from typing import Any

from _figures import save
from _shared import epochs_of, loaded, parser_of, train, untrained

import fmprobe
from fmprobe.files import write_json
from fmprobe.probes.training import matched_curves
from fmprobe.runs.sweeps import sweep
from fmprobe.seeding import seed_torch
from fmprobe.sharing import is_main, together


@dataclass(frozen=True)
class Condition:
    """How a network is trained, and the number of starts of each kind that its attractors are sought from."""

    width: int = 8
    weight_decay: float = 1e-4
    noise: float = 0.0
    starts: int = 64


CHANGES: dict[str, list[Any]] = {
    "width": [4, 16],
    "weight_decay": [0.0, 1e-3],
    "noise": [0.1, 0.3],
    "starts": [16, 256],
}


def varied(middle: Condition, changes: list[str], full: bool) -> dict[str, Condition]:
    """The middle condition and every single change of it; with `full` also every pair of changes."""
    found = {"middle": middle}
    for field in changes:
        found |= {f"{field} {value:g}": replace(middle, **{field: value}) for value in CHANGES[field]}
    if full:
        pairs = [(a, b) for i, a in enumerate(changes) for b in changes[i + 1 :]]
        found |= {
            f"{a} {x:g}, {b} {y:g}": replace(middle, **{a: x, b: y})
            for a, b in pairs
            for x in CHANGES[a]
            for y in CHANGES[b]
        }
    return found


def tracked(_: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    chosen = argparse.Namespace(**settings, batch_size=64, learning_rate=1e-3)
    images, test = loaded(chosen.set, chosen.data, chosen.images, 200)
    epochs = epochs_of(chosen.steps, images, chosen.batch_size)
    tracker = fmprobe.AttractorTracker(
        images,
        test,
        starts=chosen.starts,
        epochs={0, epochs, *(round(epochs / 4**i) for i in range(1, 3))},
        seed=chosen.seed,
        max_steps=chosen.max_steps,
    )
    variant = {"variant": "denoising", "strength": chosen.noise} if chosen.noise else {}
    seed_torch(chosen.seed, "noise_meets_training recipe: weights")
    train(untrained(images, chosen, **variant), images, chosen, epochs=epochs, seed=chosen.seed, callback=tracker)
    return tracker.records


@together()
def main() -> None:
    parser = parser_of("noise_meets_training", __doc__, "Also change two settings at a time.")
    parser.add_argument("--set", default="digits", help="Data set: digits, mnist, fashion_mnist or cifar10.")
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES), help="Settings to change.")
    parser.add_argument("--starts", type=int, default=64, help="Number of starts of each kind, in the middle.")
    parser.add_argument("--k", type=int, default=8, help="Bottleneck.")
    parser.add_argument("--images", type=int, default=500, help="Number of training images.")
    parser.add_argument("--steps", type=int, default=1000, help="Number of training steps.")
    parser.add_argument("--max-steps", type=int, default=500, help="Largest number of steps of an orbit.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the weights, the training and the starts.")
    arguments = parser.parse_args()

    print("| condition | epoch | train | noise | Chamfer | training attractors met | noise attractors met | test MSE |")
    print("|" + "---|" * 8)
    runs: dict[str, list[dict[str, Any]]] = {}
    given = {name: value for name, value in vars(arguments).items() if name not in ("changes", "full", "out")}
    chosen = varied(Condition(starts=arguments.starts), arguments.changes, arguments.full)
    conditions = {name: {**given, **asdict(condition)} for name, condition in chosen.items()}
    for name, found in sweep(tracked, conditions, arguments.out / "conditions"):
        runs[name] = found
        for record in found:
            counts = [f"{record[kind]['count']} ({record[kind]['converged']:.0%})" for kind in ("train", "noise")]
            matched = record["matched"] or {}
            shares = [record["chamfer"], matched.get("train"), matched.get("noise"), record["test_error"]]
            cells = [name, str(record["epoch"]), *counts]
            cells += ["none" if share is None else f"{share:.3f}" for share in shares]
            print("| " + " | ".join(cells) + " |", flush=True)
    if is_main():
        write_json(arguments.out / "records.json", runs)
        about = [f"convolutional autoencoder, k = {arguments.k}", f"{arguments.images} training images at first"]
        for direction in ("train", "noise"):
            save(matched_curves(runs, direction), arguments.out, f"met-{direction}", about)


if __name__ == "__main__":
    main()
