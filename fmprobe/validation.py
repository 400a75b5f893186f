"""What speaks against a surrogate: it makes less of held-out images than their median colour, or the mean feature."""

import math
from collections.abc import Mapping
from typing import Any

POOR = "the surrogate is worse than {}, so what it finds says nothing of the encoder"


def warning_of(decoder: Mapping[str, Any] | None) -> str | None:
    """What speaks against the decoder of a model's provenance, or of a run's results; None where nothing does.

    Goes by its `validation`: for each set of held-out images the L1 error beside that of each image's own median a
    channel; for a surrogate on features, which paints nothing, a relative error of 1, that of the mean feature. One
    that is not finite counts as worse. A model's own decoder is not judged.
    """
    if not decoder or decoder.get("kind") != "surrogate":
        return None
    rows = decoder.get("validation") or {}
    if not rows:
        return "how well the surrogate does on held-out images is not known"
    painted = {name: (row["l1"], row["l1_median"]) for name, row in rows.items() if "l1" in row}
    coded = {name: row["feature_error"] for name, row in rows.items() if "l1" not in row}
    worse = [f"{_words(name)} L1 {_figure(l1)} against {_figure(median)}" for name, (l1, median) in painted.items()]
    worse = [text for text, (l1, median) in zip(worse, painted.values(), strict=True) if not _below(l1, median)]
    if worse:
        return POOR.format(f"each image's own median colour ({'; '.join(worse)})")
    worse = [f"{_words(name)} error {_figure(error)}" for name, error in coded.items() if not _below(error, 1.0)]
    return POOR.format(f"the mean feature ({'; '.join(worse)})") if worse else None


def warnings_in(results: Mapping[str, Any]) -> list[str]:
    """What speaks against the surrogates of a run, of two models if it compares them."""
    decoders = [results.get("decoder"), (results.get("other") or {}).get("decoder")]
    return [text for decoder in decoders if (text := warning_of(decoder)) is not None]


def _below(value: float | None, bound: float | None) -> bool:
    """Whether a figure is known, finite, and below another; null is what a file holds for one that is not finite."""
    return value is not None and bound is not None and math.isfinite(value) and value < bound


def _words(name: str) -> str:
    return name.replace("_", " ")


def _figure(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.3f}"
