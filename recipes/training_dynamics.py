"""Track how attractors form during training (Fumero et al., ICLR 2026, fig. 3; fig. 13 over epochs).

    python recipes/training_dynamics.py                                # scikit-learn's digits, k = 32, a minute
    python recipes/training_dynamics.py --data ../shared/data          # MNIST, k = 128
    python recipes/training_dynamics.py --full                         # the paper's protocol, from the hub, on a GPU

The recipe trains one convolutional autoencoder for each seed. At epochs 0, 1, 2, 4, 8, … and at the last one it finds
the attractors that training images, test images and N(0, I) lead to. It prints a line for each record. `--out` keeps
the curves and `records-SEED.jsonl`, which grows during the training.

Rules by which `evidence.py` decides, written before the runs; `_rules.py` says when each agrees:

- "one attractor at epoch 0" holds for more than half of the seeds: binomial test.
- "growth of the number of training attractors" is positive for more than half of the rows: sign test.
- "number grew, and is within a fifth of that of the record before" holds for more than half of the seeds: binomial
  test. A number that never left 1 has not settled.
- "mean lead of training over noise attractors" is positive for more than half of the rows: sign test.
- "correlation of rank and epoch" is positive for more than half of the rows: sign test.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _figures import save
from _rules import spearman
from _shared import FULL, REDUCED, SMALLEST, add_protocol, epochs_of, fill, loaded, parser_of, told, train, untrained

import fmprobe
from fmprobe.probes.training import training_curves
from fmprobe.runs.sweeps import results_in, sweep
from fmprobe.seeding import seed_torch
from fmprobe.sharing import together

GREW_AND_SETTLED = "number grew, and is within a fifth of that of the record before"
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


def tracked(_: str, settings: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """The records of one training; its curves go to `out`."""
    arguments = argparse.Namespace(**settings)
    images, test = loaded(arguments.set, arguments.data, arguments.images, arguments.test)
    epochs = epochs_of(arguments.steps, images, arguments.batch_size)
    path = out / f"records-{arguments.seed}.jsonl"
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
    seed_torch(arguments.seed, "training_dynamics recipe: weights")
    train(untrained(images, arguments), images, arguments, epochs=epochs, seed=arguments.seed, callback=tracker)
    about = [*told(arguments, images), f"{arguments.starts} starts of each kind"]
    save(training_curves(tracker.records), out, f"curves-{arguments.seed}", about)
    return tracker.records


def evidence(folder: Path) -> list[dict[str, Any]]:
    """The figures of each seed of a finished run, for `evidence.py`: counts are those of attractors."""
    rows = []
    for content in results_in(folder):
        records, settings = content["result"], content["settings"]
        counts = {kind: [record[kind]["count"] or 0 for record in records] for kind in ("train", "test", "noise")}
        ranks = [(record["epoch"], record["rank"].get("train")) for record in records]
        known = np.array([pair for pair in ranks if pair[1] is not None], dtype=float).T
        last, before = counts["train"][-1], counts["train"][-2]
        row = {"set": settings["set"], "k": settings["k"], "seed": settings["seed"], "epochs": records[-1]["epoch"]}
        row |= {"one attractor at epoch 0": all(found[0] == 1 for found in counts.values())}
        row |= {f"attractors from {kind} at the end": found[-1] for kind, found in counts.items()}
        growth = row["growth of the number of training attractors"] = last - counts["train"][0]
        row[GREW_AND_SETTLED] = growth > 0 and abs(last - before) <= max(last, before) / 5
        lead = np.subtract(counts["train"], counts["noise"])[1:]
        row["mean lead of training over noise attractors"] = float(lead.mean())
        row["correlation of rank and epoch"] = float(spearman(*known)) if known.size else None
        rows.append(row)
    return rows


@together()
def main() -> None:
    parser = parser_of("training_dynamics", __doc__, "Use all of MNIST from the hub, 500 epochs and 5000 starts.")
    parser.add_argument("--set", help="Data set: digits, mnist, fashion_mnist or cifar10.")
    parser.add_argument("--k", type=int, help="Bottleneck.")
    add_protocol(parser)
    arguments = parser.parse_args()
    preset = PUBLISHED if arguments.full else DIGITS if arguments.data is None else DEFAULT
    fill(arguments, preset)
    arguments.set = arguments.set or ("digits" if preset is DIGITS else "mnist")

    given = {name: getattr(arguments, name) for name in (*preset, "set", "data", "device")}
    given["test"] = None if arguments.full else 300
    conditions = {f"seed-{seed}": {**given, "seed": seed} for seed in arguments.seeds}
    for name, records in sweep(partial(tracked, out=arguments.out), conditions, arguments.out):
        print("| " + " | ".join(HEADER) + " |")
        print("|" + "---|" * len(HEADER))
        print("\n".join(map(line, records)))
        seconds = sum(record["cost"]["seconds"] for record in records)
        words = f"{len(records)} records of {arguments.starts} starts a kind, {seconds:.0f} s of tracking"
        print(f"{arguments.set}: {words} ({name})\n", flush=True)


if __name__ == "__main__":
    main()
