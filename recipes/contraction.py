"""Measure how far networks with random weights contract their input (Fumero et al., ICLR 2026, fig. 6).

    python recipes/contraction.py                   # 12 backbones of timm, 64 inputs of 112 px, 3 seeds; minutes
    python recipes/contraction.py --full            # 1000 inputs of 224 px, 10 seeds
    python recipes/contraction.py --probe           # J_f along trajectories of the demo model, trained and random

1. Each backbone is made with the random weights of timm's initialisation, in eval mode. Batch normalisation is then the
   identity.
2. It is fed N(0, I) images without a normalisation of pixels.
3. Two outputs are measured: `forward_features` and the 1000 logits. In transformers `forward_features` ends with a
   LayerNorm, which sets its deviation to 1 whatever came before.
4. The ratio of standard deviations, output over input, is taken in two ways. "Pooled" is over all values together.
   "Across" is over inputs, coordinate by coordinate, and no offset can raise it.

The recipe prints a line for each backbone. One backbone is in memory at a time. `--out` keeps the ratios.

Rules by which `evidence.py` decides, written before the runs; `_rules.py` says when each agrees:

- "ratio below 1" holds for more than half of the backbones, for each of "output" alone: binomial test.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _figures import add_figure_options, save

import fmprobe
from fmprobe.files import write_json
from fmprobe.probes.contraction import noise_images, std_ratio
from fmprobe.runs.sweeps import results_in, sweep
from fmprobe.seeding import seed_torch
from fmprobe.sharing import is_main, together

BACKBONES = (
    "resnet18",
    "resnet50",
    "densenet121",
    "vgg11_bn",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "regnety_008",
    "convnext_tiny",
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
)
OUTPUTS = ("features", "logits")
BATCH = 16


def backbone(name: str, side: int, seed: int) -> Any:
    import timm

    seed_torch(seed, "contraction recipe: weights")
    try:  # transformers and mixers fix their image size when they are made
        module = timm.create_model(name, pretrained=False, img_size=side)
    except TypeError:  # convolutional networks take any size
        module = timm.create_model(name, pretrained=False)
    return module.eval().requires_grad_(False)


def measure(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Ratios by output and kind, one for each seed, and the seconds they took."""
    began = time.perf_counter()
    arguments = argparse.Namespace(**settings)
    row: dict[str, Any] = {f"{output} {kind}": [] for output in OUTPUTS for kind in ("pooled", "across")}
    for seed in range(arguments.seeds):
        module = backbone(name, arguments.side, seed).to(arguments.device)
        outputs = {
            "features": module.forward_features,
            "logits": lambda x, module=module: module.forward_head(module.forward_features(x)),
        }
        for output, function in outputs.items():
            inputs = noise_images(arguments.inputs, (3, arguments.side, arguments.side), seed, BATCH)
            ratios = std_ratio(function, (x.to(arguments.device) for x in inputs))
            for kind, value in ratios.items():
                row[f"{output} {kind}"].append(value)
    return {"name": name, "ratios": row, "seconds": time.perf_counter() - began}


def evidence(folder: Path) -> list[dict[str, Any]]:
    """The ratio of each backbone, output and seed of a finished run, for `evidence.py`."""
    rows = []
    for content in results_in(folder / "backbones"):
        for output, ratios in content["result"]["ratios"].items():
            for seed, ratio in enumerate(ratios):
                row = {"output": output, "backbone": content["result"]["name"], "seed": seed, "ratio": ratio}
                rows.append(row | {"ratio below 1": ratio is not None and ratio < 1})
    return rows


def print_ratios(name: str, row: dict[str, Any], seconds: float) -> None:
    cells = []
    for values in row.values():
        known = [value for value in values if value is not None]
        cells.append(f"{np.mean(known):9.2e} ± {np.std(known):7.1e}" if known else f"{'not finite':>19}")
    print(f"{name:30}{'  '.join(cells)}  {seconds:5.0f} s", flush=True)


def table(arguments: argparse.Namespace) -> None:
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{arguments.inputs} inputs of {arguments.side} px, {arguments.seeds} seeds: mean ± deviation over seeds")
    print(f"{'':30}" + "".join(f"{f'{output} {kind}':>19}  " for output in OUTPUTS for kind in ("pooled", "across")))
    rows = {}
    settings = {name: getattr(arguments, name) for name in ("inputs", "side", "seeds", "device")}
    conditions = dict.fromkeys(arguments.backbones, settings)
    for name, found in sweep(measure, conditions, arguments.out / "backbones"):
        rows[name] = found["ratios"]
        print_ratios(name, found["ratios"], found["seconds"])
    for column in next(iter(rows.values())):
        below = sum(all(value is not None and value < 1 for value in row[column]) for row in rows.values())
        print(f"{column}: below 1 under every seed for {below} of {len(rows)} backbones")
    protocol = {"inputs": arguments.inputs, "side": arguments.side, "seeds": arguments.seeds, "mode": "eval"}
    if is_main():
        write_json(arguments.out / "contraction.json", {"protocol": protocol, "backbones": rows})


def examine(label: str, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """The spectral norm and radius of J_f along trajectories of the demo model, trained or with random weights."""
    model = fmprobe.load(str(Path(fmprobe.__file__).parent / "demo" / "vit-mae-digits"), device="cpu", **settings)
    found = fmprobe.probe_contraction(model, n=256, starts=16)
    about = [f"demo model, {label}", "16 starts from N(0, I)"]
    save(found.draw(), out, f"contraction-{label.replace(' ', '-')}", about)
    return found.to_dict()


def probe(arguments: argparse.Namespace) -> None:
    conditions = {"trained": {"random_weights": None}, "random weights": {"random_weights": 0}}
    work = partial(examine, out=arguments.out)
    for name, found in sweep(work, conditions, arguments.out / "probe", arguments.out):
        print(f"\ndemo model, {name}: ratio of deviations {json.dumps(found['std_ratio'])}")
        print(f"{'step':>6}{'norm':>10}{'below 1':>10}{'radius':>10}{'below 1':>10}{'finite differences':>21}")
        for i, step in enumerate(found["steps"]):
            cells = [found[key][i] for key in ("norms", "radii", "local")]
            text = "".join(f"{cell['q50']:10.3f}{cell['share_below_1']:10.0%}" for cell in cells[:2])
            print(f"{step:6}{text}{cells[2]['q50']:21.3f}")


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="Use 1000 inputs of 224 px and 10 seeds, as published.")
    parser.add_argument("--probe", action="store_true", help="Measure the demo model's Jacobians instead.")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="Names of timm architectures.")
    parser.add_argument("--inputs", type=int, help="Number of inputs. [default: 64]")
    parser.add_argument("--side", type=int, help="Image side in pixels, a multiple of 32. [default: 112]")
    parser.add_argument("--seeds", type=int, help="Number of seeds of each backbone. [default: 3]")
    parser.add_argument("--device", help="Device to compute on. [default: cuda where there is one, else cpu]")
    parser.add_argument("--out", type=Path, default=Path("runs/contraction"), help="Folder for the results.")
    add_figure_options(parser)
    arguments = parser.parse_args()
    defaults = {"inputs": 1000, "side": 224, "seeds": 10} if arguments.full else {"inputs": 64, "side": 112, "seeds": 3}
    for name, value in defaults.items():
        setattr(arguments, name, getattr(arguments, name) or value)
    probe(arguments) if arguments.probe else table(arguments)


if __name__ == "__main__":
    main()
