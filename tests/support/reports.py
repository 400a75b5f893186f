"""Finished run folders made by hand, for reports: every section, nothing computed."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fmprobe.probes.prototypes.found import COLUMNS

STATUSES = ("converged", "cycle", "slow", "wandering", "diverged")


def _noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """The picture that compresses worst."""
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def prototypes_run(folder: Path, attractors: int = 1, side: int = 8, name: str = "acme/model") -> Path:
    """A run of `fmprobe probe` with so many attractors, pictures of noise and a film of two starts."""
    rng = np.random.default_rng(0)
    (folder / "prototypes").mkdir(parents=True)
    sizes = list(range(attractors + 1, 1, -1))
    converged = sum(sizes) + 1
    with (folder / "prototypes" / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i, size in enumerate(sizes):
            _noise(rng, side, side).save(folder / "prototypes" / f"{i:04d}.png")
            writer.writerow((f"{i:04d}.png", size, size / (converged + 2), i, "0.5000", "0.001", 7, "4e-06"))
    _noise(rng, 3 * side, 2 * side).save(folder / "trajectories.png")
    status = dict.fromkeys(STATUSES, 0) | {"converged": converged, "slow": 1, "wandering": 1}
    noise = {"starts": converged + 2, "status": status, "steps": {"median": 7.0, "p90": 9.0, "max": 10}}
    merge = {
        "measure": "relative",
        "threshold": 0.01,
        "sweep": {"0.001": attractors + 1, "0.01": attractors},
        "also": {},
    }
    results = {
        **head(name),
        "orbits": {"noise": noise},
        "attractors": {
            "count": attractors,
            "unresolved": 1,
            "unstable": 0,
            "examined": attractors,
            "stability_unknown": 0,
            "sizes": sizes,
            "spectral_radius": [0.5] * attractors,
            "merge": merge,
        },
        "residuals": {"steps": [1, 2], "norms": [[1.0, 0.1], [1.0, None]], "status": ["converged", "slow"]},
        "trajectories": {"starts": [0, 4], "steps": [0, 1], "ended": [2, 10], "status": ["converged", "slow"]},
    }
    write(folder, results)
    return folder


def head(name: str) -> dict[str, Any]:
    return {
        "schema": 1,
        "fmprobe": "0",
        "command": "fmprobe probe <script>alert(1)</script>",
        "date": "today",
        "device": "cpu",
        "total_seconds": 1.0,
        "model": {"id": name, "image_shape": [3, 8, 8], "latent_shape": [2]},
        "decoder": {
            "kind": "surrogate",
            "architecture": "tiny",
            "data": {"source": "procedural"},
            "validation": {"held_out": {"l1": 0.1, "l1_median": 0.2, "feature_error": 0.3}},
        },
        "decodes_to_images": True,
        "protocol": {"measure": "squared", "tol": 1e-5, "rules": {"rate_window": 32}},
    }


def with_weights(folder: Path) -> Path:
    """The key `weights` added: two dictionaries at two numbers of atoms, and their frames."""
    rng = np.random.default_rng(1)
    (folder / "weights").mkdir()
    _noise(rng, 2 * 8, 4 * 8).save(folder / "weights" / "set-frames.png")
    level = {"mean": 0.1, "low": 0.05, "high": 0.2}
    metrics = {name: [level, level] for name in ("image_mse", "latent_mse", "psnr")}
    one = dict.fromkeys(("image_mse", "latent_mse", "psnr"), level)
    curves = {
        "subject": "attractors",
        "levels": [1, 2],
        "images": 1,
        "own": one,
        "zero": one,
        "dictionaries": {
            "attractors": {"count": 2, "effective_rank": 1.9, **metrics},
            "Gaussian": {"count": 2, "effective_rank": 2.0, **metrics, "excess": [level, level]},
        },
        "absent": {"PCA": "no <i>images</i>"},
        "frames": {
            "picture": "set-frames.png",
            "rows": ["image", "D(E(x))", "attractors", "Gaussian"],
            "images": 1,
            "levels": [1, 2],
        },
    }
    return add(folder, "weights", {"data": {"a set": curves}})


def with_the_rest(folder: Path) -> Path:
    """The keys of the other probes added, each as small as its figure allows."""
    (folder / "memorization").mkdir()
    _noise(np.random.default_rng(2), 18, 8).save(folder / "memorization" / "0000.png")
    level = {"mean": 0.9, "std": 0.05, "count": 1}
    row = {"known": 2, "share_below_1": 1.0, "q10": 0.5, "q25": 0.6, "q50": 0.7, "q75": 0.8, "q90": 0.9}
    curve = {f"q{q}": [0.5, 0.25] for q in (10, 25, 50, 75, 90)}
    norms = {"latent": curve, "output": None, "norm": curve}
    correlations = {"pearson": None, "spearman": None}
    basins = {"adjusted_rand": None, "jaccard": None, "jaccard_chance": None, "reason": "no start settled"}
    entries = {
        "memorization": {
            "subject": "attractors",
            "count": 1,
            "coefficient": 0.9,
            "levels": {"cosine": {"attractors": level, "test images": level, "noise images": None}},
            "nearest": [5],
            "nearest_cosine": [0.9],
            "errors": {"train": 0.1},
            "rank": {"attractors": 1, "train_images": 1},
            "images": {"train": 6, "test": 6},
            "bound": None,
            "warning": "f may be near constant",
        },
        "field": {
            "ticks": [-1, 0, 1],
            "extent": 1,
            "basins": [[0, 0, -1]] * 3,
            "arrows": [[[1, 0]] * 3] * 3,
            "norms": [[1, 2, 3]] * 3,
            "attractors": [[0, 0]],
            "plane": "the latent space",
        },
        "convergence": {
            "eps": 0.01,
            "starts": 2,
            "attractors": 1,
            "estimates": {"rate": {"measured": [3], "estimated": [2.5], "median_ratio": 1.2, **correlations}},
            "left_out": {"rate": {"no attractor": 1}},
        },
        "contraction": {
            "std_ratio": {"E": {"pooled": 1.1, "across": 0.9}},
            "steps": [0, 1],
            "norms": [row, row],
            "radii": None,
            "local": None,
            "distant": None,
            "absent": {"radii": "f has no derivative"},
            "protocol": {"starts": 2},
        },
        "residual_curves": {"steps": [1, 2], **norms, "n": 2, "starts": "N(0, I)", "finite": [2, 1], "start_norm": 1.5},
        "alignment": {
            "subject": {
                "maps": {"orthogonal": {"fit_error": 0.1, "cosine": row, "basins": basins, "chamfer": None}},
                "drift": {"steps": [0], "agreement": [1.0]},
                "orbits": {"a": {"attractors": 2}, "b": {"attractors": None}},
            },
            "null": None,
            "ceiling": None,
            "absent": {},
        },
    }
    for key, entry in entries.items():
        add(folder, key, entry)
    return folder


def ood_facts() -> dict[str, Any]:
    """What `fmprobe ood` keeps under `ood`."""
    status = dict.fromkeys(STATUSES, 0) | {"converged": 4}
    about = {"images": 4, "status": status, "diverged": 0, "accepted_share": 0.5}
    measured = {"auroc": 0.8, "fpr95": 0.4, "intervals": {"auroc": [0.7, 0.9]}}
    rows = (("trajectory", "trajectory"), ("knn-1", "baseline"))
    return {
        "convention": "in-distribution is low",
        "split": {"fit": 8, "held_out": 4, "test": 4, "duplicates_dropped": 0},
        "sets": {"in-distribution": about, "elsewhere": {**about, "dropped": 0}},
        "detector": {"reference": {"kind": "attractors"}, "decision": {"rule": "joined", "acceptance": 0.95}},
        "distances_to": "3 attractors",
        "bootstrap": 500,
        "groups": {"trajectory": "the published score", "baseline": "baselines"},
        "scores": [{"name": name, "group": group, "sets": {"elsewhere": measured}} for name, group in rows],
        "histograms": {"trajectory": {"edges": [0, 1, 2], "counts": {"in-distribution": [3, 1], "elsewhere": [1, 3]}}},
    }


def add(folder: Path, key: str, entry: Any) -> Path:
    """Another key in results.json."""
    results = json.loads((folder / "results.json").read_text())
    write(folder, {**results, key: entry})
    return folder


def write(folder: Path, results: Any) -> None:
    (folder / "results.json").write_text(json.dumps(results))
