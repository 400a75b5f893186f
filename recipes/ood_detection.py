"""Out-of-distribution detection by latent trajectories, with every baseline in one table (fig. 5, 10, tab. 1).

    python recipes/ood_detection.py                                        # the demo model, offline
    python recipes/ood_detection.py --model M --data ID --ood A --ood B    # anything else
    python recipes/ood_detection.py --train-mae ../shared/data             # a small ViT-MAE, trained first
    python recipes/ood_detection.py --dinov2 ../shared                     # an encoder with a surrogate decoder
    python recipes/ood_detection.py --full                                 # the published protocol; an accelerator

1. data: an in-distribution source, split by content into fit, held-out and test images; other sets; controls;
2. detector: the attractors of the fit images; the score is a trajectory's mean distance to the nearest of them;
3. table: AUROC and FPR95 of that score, of each part alone, of every baseline on the same features, of two-sided and
   one-class scores fitted on held-out images. Nothing is chosen by the out-of-distribution sets.

The run folder holds results.json, report.html and the detector, ready for `fmprobe score`.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from fmprobe.probes.ood import run_ood
from fmprobe.seeding import generator
from fmprobe.sharing import is_main, team, together

PATCHES, SIDE = 120, 64  # of scikit-learn's two photographs, and their side in pixels

# The paper's: 2000 images to fit on. A run takes 4000, half to fit and a quarter each to calibrate and to test.
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
    """The embedded model; scikit-learn's digits against random patches of its two photographs."""
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
    return {
        "model": str(Path(fmprobe.demo.__path__[0]) / "vit-mae-digits"),
        "data": str(folder / "digits.npz"),
        "ood": [f"patches={folder / 'patches.npz'}"],
        "images": 480,
    }


def small_mae(folder: Path, data: Path, minutes: float, seed: int) -> dict[str, Any]:
    """A small ViT-MAE, trained on CIFAR-10 unless it is there; against digits, garments and textures."""
    import train_small_mae as small

    import fmprobe

    if not (folder / "config.json").is_file():
        images = fmprobe.load_images(str(data / "cifar10/train.parquet"), image_shape=(3, small.SIDE, small.SIDE))
        model = small.build(width=96, layers=4, seed=seed)
        small.train(model, images, minutes, seed=seed)
        small.save(model, folder)
    return {
        "model": str(folder),
        "data": f"{data / 'cifar10'}:test",  # the model has seen none of these
        "ood": [
            f"mnist={data / 'mnist.npz'}:x_test",
            f"fashion={data / 'fashion_mnist.npz'}:x_test",
            f"textures={data / 'textures'}",
        ],
        "images": 480,
        "steps": 30,
    }


def dinov2(shared: Path) -> dict[str, Any]:
    """A DINOv2 backbone at 112 px with a surrogate decoder on procedural images; photos against three sets."""
    data = shared / "data"
    return {
        "model": str(shared / "models/dinov2-small"),
        "data": f"{data / 'photos'}:train",
        "ood": [f"textures={data / 'textures'}", f"scenes={data / 'scenes'}", f"cifar10={data / 'cifar10'}:test"],
        "images": 200,
        "steps": 20,
    }


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="hub id or folder; with --data and --ood")
    which.add_argument("--train-mae", type=Path, metavar="DATA", help="folder with cifar10/, mnist.npz, …")
    which.add_argument("--dinov2", type=Path, metavar="SHARED", help="folder with models/dinov2-small and data/")
    which.add_argument("--full", action="store_true", help="the published protocol, by hub names")
    parser.add_argument("--data", help="in-distribution images, SOURCE[:split][#column]")
    parser.add_argument("--ood", action="append", default=[], help="NAME=SOURCE or SOURCE; repeatable")
    parser.add_argument("--images", type=int, help="in-distribution images: half to fit, a quarter to test")
    parser.add_argument("--steps", type=int, help="steps counted of every orbit [default: to its end]")
    parser.add_argument("--minutes", type=float, default=9.0, help="of training, with --train-mae")
    parser.add_argument("--decoder", help="a folder that fit-decoder wrote")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/ood"))
    args = parser.parse_args()
    if args.model and not args.data:
        parser.error("--model needs --data, and --ood for each set from elsewhere")

    with team().main_first():  # which leaves what is prepared on disk
        if args.train_mae:
            run = small_mae(args.out.with_name(args.out.name + "-model"), args.train_mae, args.minutes, args.seed)
        elif args.dinov2:
            run = dinov2(args.dinov2)
        elif args.full:
            run = dict(FULL)
        elif args.model:
            run = {"model": args.model, "data": args.data, "ood": []}
        else:
            run = demo(args.out.with_name(args.out.name + "-data"), args.seed)
    run |= {key: value for key in ("data", "ood", "images", "steps") if (value := getattr(args, key))}
    load = {"revision": None, "decoder": args.decoder, "image_size": None, "device": args.device, "dtype": None}
    run_ood(
        run["model"],
        run["data"],
        run["ood"],
        args.out,
        load=load,
        settings={"steps": run.get("steps"), "max_steps": run.get("max_steps")},
        images=run.get("images"),
        seed=args.seed,
    )


if __name__ == "__main__":
    main()
