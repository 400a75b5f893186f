"""When do attractors found from noise meet those of the training images? A map of the conditions.

    python recipes/noise_meets_training.py                                  # scikit-learn's digits, k = 8
    python recipes/noise_meets_training.py --data ../shared/data --set mnist

An open question of Fumero et al., ICLR 2026 (sec. 6). From one condition in the middle, width, weight decay, noise
level (of a denoising autoencoder) and number of starts are changed one at a time. Prints, for each condition and at
each epoch measured, the share of training attractors with a noise attractor at cos > 0.99, and the reverse; `--out`
keeps the records and the curves. What is there is not computed again; launched processes share the conditions.
"""

import argparse
import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import fmprobe
from fmprobe.files import write_json
from fmprobe.images import load_small_set
from fmprobe.probes.training import matched_curves
from fmprobe.runs.sweeps import sweep
from fmprobe.seeding import seed_torch
from fmprobe.sharing import is_main, together

loaded = cache(load_small_set)


@dataclass(frozen=True)
class Condition:
    """How a network is trained, and from how many starts of each kind its attractors are sought."""

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


def conditions(middle: Condition, changes: list[str], full: bool) -> dict[str, Condition]:
    """The middle, and one change at a time; with `full` two."""
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
    chosen = argparse.Namespace(**settings)
    train, test = loaded(chosen.set, chosen.data, chosen.images, 200)
    epochs = max(1, round(chosen.steps / math.ceil(len(train) / 64)))
    tracker = fmprobe.AttractorTracker(
        train,
        test,
        starts=chosen.starts,
        epochs={0, epochs, *(round(epochs / 4**i) for i in range(1, 3))},
        seed=chosen.seed,
        max_steps=chosen.max_steps,
    )
    seed_torch(chosen.seed, "noise_meets_training recipe: weights")
    network = fmprobe.ConvAutoencoder(
        chosen.k,
        chosen.width,
        (train.shape[1], train.shape[2], train.shape[3]),
        variant="denoising" if chosen.noise else "plain",
        strength=chosen.noise or None,
    )
    fmprobe.train_autoencoder(
        network.to(chosen.device),
        train,
        epochs=epochs,
        batch_size=64,
        learning_rate=1e-3,
        weight_decay=chosen.weight_decay,
        seed=chosen.seed,
        callback=tracker,
    )
    return tracker.records


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with mnist.npz, fashion_mnist.npz and cifar10")
    parser.add_argument("--set", default="digits", help="digits, mnist, fashion_mnist or cifar10")
    parser.add_argument("--full", action="store_true", help="two changes at a time too")
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES), help="what is varied")
    parser.add_argument("--starts", type=int, default=64, help="of each kind, in the middle")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--max-steps", type=int, default=500, help="of an orbit")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/noise_meets_training"))
    arguments = parser.parse_args()

    print("| condition | epoch | train | noise | Chamfer | training attractors met | noise attractors met | test MSE |")
    print("|" + "---|" * 8)
    runs: dict[str, list[dict[str, Any]]] = {}
    middle = Condition(starts=arguments.starts)
    given = {name: value for name, value in vars(arguments).items() if name not in ("changes", "full", "out")}
    chosen = conditions(middle, arguments.changes, arguments.full)
    settings = {name: {**given, **asdict(condition)} for name, condition in chosen.items()}
    for name, runs[name] in sweep(tracked, settings, arguments.out / "conditions"):
        for record in runs[name]:
            counts = [f"{record[kind]['count']} ({record[kind]['converged']:.0%})" for kind in ("train", "noise")]
            matched = record["matched"] or {}
            shares = [record["chamfer"], matched.get("train"), matched.get("noise"), record["test_error"]]
            cells = [name, str(record["epoch"]), *counts]
            cells += ["none" if share is None else f"{share:.3f}" for share in shares]
            print("| " + " | ".join(cells) + " |", flush=True)
    if is_main():
        write_json(arguments.out / "records.json", runs)
        for direction in ("train", "noise"):
            matched_curves(runs, direction).savefig(arguments.out / f"met-{direction}.png", dpi=120)


if __name__ == "__main__":
    main()
