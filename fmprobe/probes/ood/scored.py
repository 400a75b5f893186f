"""What a detector makes of new images: the distribution of their scores, the most and the least unusual of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fmprobe.errors import InputError
from fmprobe.pictures import save_frames
from fmprobe.probes.ood.calibration import p_values
from fmprobe.probes.ood.probe import INSIDE, histogram_of
from fmprobe.probes.ood.score import LARGEST

if TYPE_CHECKING:
    from fmprobe.probes.ood.detector import TrajectoryDetector

SHOWN = 6  # images
PARTS = 3  # parts of the score that are named for each of them
PICTURES = {"unusual": "unusual.png", "usual": "usual.png"}  # of the images under each key

Row = Mapping[str, str]  # a row of the table of scores
Read = tuple[str, Callable[[], Tensor]]  # the name of an image, and what reads it


def about_scores(
    detector: "TrajectoryDetector",
    rows: Sequence[Row],
    images: Sequence[Read],
    rule: str,
    folder: Path,
) -> dict[str, Any]:
    """The distribution of the scores beside that of the held-out images, the most and the least unusual images.

    Their pictures are written into the folder.

    Args:
        detector: the detector.
        rows: the rows of the table.
        images: the images, in the same order.
        rule: the score that decides.
        folder: the run's folder.
    """
    held_out = detector.held_out_scores(rule)
    known = np.array([bool(row["score"]) for row in rows])
    scores = np.array([float(row["score"] or "nan") for row in rows])
    found = {"histogram": histogram_of({INSIDE: held_out, "scored": scores[known]})} if known.any() else {}
    ranked = [i for i in np.argsort(-scores, kind="stable").tolist() if scores[i] < LARGEST]
    chosen = {"unusual": ranked[:SHOWN], "usual": ranked[SHOWN:][-SHOWN:][::-1]}
    return found | {
        key: _explained(detector, [(rows[i], images[i][1]) for i in some], held_out, rule, folder / PICTURES[key])
        for key, some in chosen.items()
    }


def _explained(
    detector: "TrajectoryDetector",
    chosen: Sequence[tuple[Row, Callable[[], Tensor]]],
    held_out: np.ndarray,
    rule: str,
    picture: Path,
) -> list[dict[str, Any]]:
    """Of each image its score, p-value and the parts of the score that lie farthest out, as deviations."""
    images, kept = [], []
    for row, read in chosen:
        try:
            images.append(read())
        except InputError:  # it can be read no longer
            continue
        kept.append(row)
    if not images:
        return []
    batch = torch.stack(images)
    save_frames(batch[None], picture)
    scores = np.array([float(row["score"]) for row in kept])
    return [
        {
            "file": row["file"],
            "score": float(score),
            "p_value": float(p),
            "parts": [{"name": name, "deviations": value} for name, value in list(parts.items())[:PARTS]],
        }
        for row, score, p, parts in zip(
            kept, scores, p_values(held_out, scores), detector.explain(batch, rule), strict=True
        )
    ]
