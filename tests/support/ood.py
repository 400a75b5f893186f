"""The comparison of out-of-distribution scores, as `fmprobe ood` makes it, on images in memory."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

import fmprobe
from fmprobe.probes.ood.probe import Sets, compare_scores, fit_detector


def compare(
    model: fmprobe.Autoencoder,
    images: Tensor,
    ood: Mapping[str, Tensor],
    *,
    controls: bool = True,
    bootstrap: int = 20,
    **settings: Any,
) -> dict[str, Any]:
    """Split, fit, score and compare with seed 0; gives what `results.json` keeps under `ood`."""
    sets = Sets.split(images, ood, controls, seed=0)
    detector = fit_detector(model, sets, 0.95, settings)
    found = {name: detector.examine(pictures) for name, pictures in sets.examined.items()}
    return compare_scores(detector, sets, found, bootstrap).to_dict()
