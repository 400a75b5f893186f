"""Detect out-of-distribution images by their latent trajectories, beside every baseline (fig. 5, 10, tab. 1).

    python recipes/ood_detection.py                                        # the demo model, offline
    python recipes/ood_detection.py --model M --data ID --ood A --ood B    # anything else
    python recipes/ood_detection.py --train-mae ../shared/data --seeds 3   # a small ViT-MAE, trained first
    python recipes/ood_detection.py --encoder ../shared/models/dinov2-small --sets ../shared/data --seeds 3
    python recipes/ood_detection.py --full                                 # the published protocol; an accelerator

1. The in-distribution images are split by content into fit, held-out and test images. Out-of-distribution sets and
   controls stand beside them.
2. A detector finds the attractors of the fit images. Its published score is the mean distance of a trajectory to the
   nearest of them.
3. A table gives AUROC and FPR95 of that score, of each part alone, of every baseline on the same features, and of
   two-sided and one-class scores that are fitted on the held-out images. No out-of-distribution set decides anything.
4. With `--seeds` the images are split anew for each seed, into a run folder each, and a table over all seeds follows.
   Beside the rules it shows the single score that is best on all other sets, which is what one can know beforehand,
   and the one that is best on the set itself, which is known only afterwards.

`--out` is a run folder with results.json, report.html and the detector, ready for `fmprobe score`. With `--seeds` it
holds one of each seed.

Rules by which `evidence.py` decides, written before the runs; `_rules.py` says when each agrees. A set counts where it
holds under every seed. KNN over all images is the mean distance to all fit images, by the smallest features:

- "AUROC of the trajectory above that of KNN over all images" holds for more than half of the sets: binomial test. With
  five seeds or more, "AUROC of the trajectory above that of KNN over all images" holds for more than half of the rows,
  for each of "set" alone: binomial test.
- "AUROC of the features at most 2 points below the best single score of the set" holds for more than half of the sets:
  binomial test.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import train_small_mae as small
from sklearn.datasets import load_digits, load_sample_images

from fmprobe.files import read_json, write_json
from fmprobe.nodes import level
from fmprobe.probes.ood import run_ood
from fmprobe.runs.sweeps import file_of, kept, results_in
from fmprobe.seeding import generator
from fmprobe.sharing import is_main, team, together

ABOVE_KNN = "AUROC of the trajectory above that of KNN over all images"
NEAR_BEST = "AUROC of the features at most 2 points below the best single score of the set"
PATCHES, SIDE = 120, 64  # patches of scikit-learn's two photographs, and their side in pixels

# The published protocol fits on 2000 images. A run takes 4000: half to fit, a quarter held out, a quarter to test.
FULL: dict[str, Any] = {
    "model": "facebook/vit-mae-base",
    "data": "ILSVRC/imagenet-1k:train",
    "ood": [
        "SUN397=tanganke/sun397:test",
        "Places365=torch-uncertainty/Places365",
        "Texture=torch-uncertainty/Texture",
        "iNaturalist=torch-uncertainty/iNaturalist",
    ],
    "images": 4000,
    "max_steps": 500,
}


def demo(folder: Path, seed: int) -> dict[str, Any]:
    """The embedded model, with scikit-learn's digits against random patches of its two photographs."""
    import fmprobe.demo

    digits: Any = load_digits()
    photographs: Any = load_sample_images()
    rng = generator(seed, 0, "ood: patches of photographs")
    patches = []
    for i in range(PATCHES):
        photograph = photographs.images[i % 2]
        y, x = (rng.integers(size - SIDE) for size in photograph.shape[:2])
        patches.append(photograph[y : y + SIDE, x : x + SIDE])
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "digits.npz", images=np.round(digits.images / 16 * 255).astype(np.uint8))
        np.savez(folder / "patches.npz", images=np.stack(patches))
    level(folder)
    return {
        "model": str(Path(fmprobe.demo.__path__[0]) / "vit-mae-digits"),
        "data": str(folder / "digits.npz"),
        "ood": [f"patches={folder / 'patches.npz'}"],
        "images": 480,
    }


def small_mae(folder: Path, data: Path, steps: int, seed: int) -> dict[str, Any]:
    """A small ViT-MAE, trained on CIFAR-10 unless the folder holds it, against digits, garments and textures."""
    small.trained(folder, str(data / "cifar10/train.parquet"), steps, seed)
    return {
        "model": str(folder),
        "data": f"{data / 'cifar10'}:test",  # held out from the training
        "ood": named_sets(data, without="cifar10"),
        "images": 480,
        "steps": 30,
    }


def encoder(name: Path, data: Path, folder: Path) -> dict[str, Any]:
    """An encoder with a surrogate in closed form of procedural images, with photos against every other set."""
    import fmprobe

    if not team().told(folder.is_dir):
        model = fmprobe.load(str(name), image_size="fit", device="cpu")
        decoder = fmprobe.fit_decoder(model, kind="linear", n_images=1000)  # by all processes together
        if is_main():
            decoder.save(folder)
    level(folder)
    return {
        "model": str(name),
        "decoder": str(folder),
        "data": f"{data / 'photos'}:train",
        "ood": named_sets(data, without="photos"),
        "images": 240,
        "ood_images": 60,
        "steps": 8,
        "max_steps": 8,
    }


def named_sets(data: Path, without: str) -> list[str]:
    """Every set of a folder of small and large images as NAME=SOURCE, but one."""
    sources = {
        "mnist": f"{data / 'mnist.npz'}:x_test",
        "fashion": f"{data / 'fashion_mnist.npz'}:x_test",
        "cifar10": f"{data / 'cifar10'}:test",
        "photos": f"{data / 'photos'}:test",
        "textures": f"{data / 'textures'}",
        "scenes": f"{data / 'scenes'}",
    }
    return [f"{name}={source}" for name, source in sources.items() if name != without]


def print_over_seeds(runs: list[dict[str, Any]]) -> None:
    """Print the AUROC of the rules and of the single scores on each set, in percent, over all seeds.

    An interval is from the lowest to the highest end of the seeds' own bootstrap intervals.
    """
    sets = [name for name, about in runs[0]["sets"].items() if about.get("range")]
    rows = [{row["name"]: row for row in run["scores"]} for run in runs]
    names = [name for name in rows[0] if all(name in of for of in rows)]
    alone = [name for name in names if rows[0][name]["group"] not in ("trajectory", "profile")]
    auroc = {(n, s): 100 * float(np.mean([of[n]["sets"][s]["auroc"] for of in rows])) for n in names for s in sets}

    def chosen_elsewhere(name: str) -> str:
        others = [other for other in sets if other != name]
        return max(alone, key=lambda score: sum(auroc[score, other] for other in others))

    table: dict[str, dict[str, float]] = {
        rule: {name: auroc[rule, name] for name in sets} for rule in ("features", "joined", "trajectory", "first")
    }
    table["best single score on all other sets"] = {name: auroc[chosen_elsewhere(name), name] for name in sets}
    table["best single score on this set"] = {name: max(auroc[score, name] for score in alone) for name in sets}
    ranges = {name: [run["sets"][name]["range"] for run in runs] for name in sets}
    where = {name: max(("near", "far"), key=of.count) for name, of in ranges.items()}
    print(f"\nAUROC in percent, mean over {len(runs)} seeds\n")
    print(f"| score | {' | '.join(f'{name} ({where[name]})' for name in sets)} | near | far | all |")
    print("|---" * (len(sets) + 4) + "|")
    for name, values in table.items():
        means = [_mean([values[s] for s in sets if where[s] in of]) for of in ({"near"}, {"far"}, {"near", "far"})]
        cells = [f"{values[s]:.1f}{_interval(rows, name, s)}" for s in sets]
        print(f"| {name} | {' | '.join(cells)} | {' | '.join(means)} |")
    rule = runs[0]["detector"]["decision"]["rule"]
    shares = {s: float(np.mean([run["sets"][s]["accepted_share"] for run in runs])) for s in runs[0]["sets"]}
    said = ", ".join(f"{name} {100 * share:.0f}%" for name, share in shares.items() if not name.startswith("control"))
    print(f"\naccepted at 95% by {rule!r}: {said}; mean of the sets {_mean([100 * shares[s] for s in sets])}%")
    choices = sorted({chosen_elsewhere(name) for name in sets})
    print(f"the single scores that were best on all other sets: {', '.join(choices)}")


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.1f}" if values else "–"


def _interval(rows: list[dict[str, Any]], name: str, of: str) -> str:
    """The interval of a score on a set over all seeds; of a choice among scores there is none."""
    if name not in rows[0]:
        return ""
    ends = [row[name]["sets"][of]["intervals"]["auroc"] for row in rows]
    return f" ({100 * min(low for low, _ in ends):.0f} to {100 * max(high for _, high in ends):.0f})"


def figures_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The AUROC of the scores that claims are about, and the share accepted, for each set that is no control."""
    rows = {row["name"]: row for row in found["scores"]}
    all_images = next(name for name in rows if name.startswith("knn-all mean"))
    alone = [name for name, row in rows.items() if row["group"] not in ("trajectory", "profile")]
    figures = {}
    for name, about in found["sets"].items():
        if about.get("range"):
            auroc = {score: row["sets"][name]["auroc"] for score, row in rows.items()}
            figures[name] = {
                "AUROC of the trajectory": auroc["trajectory"],
                "of its first point": auroc["first"],
                "of KNN over all images": auroc[all_images],
                "of the features": auroc["features"],
                "of the best single score": max(auroc[score] for score in alone),
                "accepted share": about["accepted_share"],
            }
    return figures


def evidence(folder: Path) -> list[dict[str, Any]]:
    """The figures of each set and seed of a finished run, for `evidence.py`."""
    rows = []
    for content in results_in(folder):
        if "model" in content["settings"]:
            for name, figures in content["result"].items():
                row = {**content["settings"], "set": name, **figures}
                trajectory, features = figures["AUROC of the trajectory"], figures["of the features"]
                row[ABOVE_KNN] = trajectory > figures["of KNN over all images"]
                row[NEAR_BEST] = features >= figures["of the best single score"] - 0.02
                rows.append(row)
    return rows


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="Hub id or folder of a model; with --data and --ood.")
    which.add_argument(
        "--train-mae", type=Path, metavar="DATA", help="Folder with cifar10/, mnist.npz, …: train a ViT-MAE."
    )
    which.add_argument("--dinov2", type=Path, metavar="SHARED", help="The same as --encoder, of a folder of both.")
    which.add_argument("--encoder", type=Path, help="Folder of an encoder without a decoder; with --sets.")
    which.add_argument("--full", action="store_true", help="Use the published protocol, by hub names.")
    parser.add_argument("--sets", type=Path, metavar="DATA", help="Folder with photos/, textures/, mnist.npz, ….")
    parser.add_argument("--data", help="In-distribution images, SOURCE[:split][#column].")
    parser.add_argument("--ood", action="append", default=[], help="Out-of-distribution images, NAME=SOURCE or SOURCE.")
    parser.add_argument("--images", type=int, help="Number of in-distribution images; half of them to fit.")
    parser.add_argument("--steps", type=int, help="Number of steps of a scored orbit. [default: to its end]")
    parser.add_argument("--train-steps", type=int, default=small.STEPS, help="Training steps, with --train-mae.")
    parser.add_argument("--decoder", help="Folder of a decoder that fit-decoder wrote.")
    parser.add_argument("--device", default="auto", help="Device to compute on.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the splits, the controls and a training.")
    parser.add_argument("--seeds", type=int, default=1, help="Number of seeds, from --seed on.")
    parser.add_argument("--out", type=Path, default=Path("runs/ood_detection"), help="Run folder.")
    args = parser.parse_args()
    if args.dinov2:
        args.encoder, args.sets = args.dinov2 / "models/dinov2-small", args.dinov2 / "data"
    if args.encoder and not args.sets:
        parser.error("--encoder needs --sets")
    if args.model and not args.data:
        parser.error("--model needs --data, and --ood for each out-of-distribution set")

    began = time.process_time()  # the first seed bears the cost of what all seeds need

    def beside(what: str) -> Path:
        """Where something of all seeds is kept."""
        return args.out / what if args.seeds > 1 else args.out.with_name(f"{args.out.name}-{what}")

    # The main process prepares data and models on disk, and all processes then read them.
    if args.train_mae:
        run = small_mae(beside("model"), args.train_mae, args.train_steps, args.seed)
    elif args.encoder:
        run = encoder(args.encoder, args.sets, beside("decoder"))
    elif args.full:
        run = dict(FULL)
    elif args.model:
        run = {"model": args.model, "data": args.data, "ood": []}
    else:
        run = demo(beside("data"), args.seed)
    run |= {key: value for key in ("data", "ood", "images", "steps") if (value := getattr(args, key))}
    decoder = args.decoder or run.get("decoder")
    load = {"revision": None, "decoder": decoder, "image_size": None, "device": args.device, "dtype": None}
    seeds = range(args.seed, args.seed + args.seeds)
    for seed in seeds:
        folder = run_ood(
            run["model"],
            run["data"],
            run["ood"],
            args.out / f"seed-{seed}" if args.seeds > 1 else args.out,
            load=load,
            settings={"steps": run.get("steps"), "max_steps": run.get("max_steps")},
            images=run.get("images"),
            ood_images=run.get("ood_images"),
            seed=seed,
        )
        settings = {"model": Path(run["model"]).name, "seed": seed}
        if is_main() and not kept(args.out, name := f"figures-seed{seed}", settings):
            figures = figures_of(read_json(folder / "results.json")["ood"])
            cost = {"processor_seconds": round(time.process_time() - began, 1)}
            write_json(file_of(args.out, name), {"settings": settings, "result": figures, **cost}, exact=True)
            began = time.process_time()
    if args.seeds > 1 and is_main():
        print_over_seeds([read_json(args.out / f"seed-{seed}" / "results.json")["ood"] for seed in seeds])


if __name__ == "__main__":
    main()
