"""Warnings about surrogates that reconstruct held-out images worse than a trivial guess.

The trivial guess is the median colour of each image or, for a surrogate on features, the mean feature.
"""

import math
from collections.abc import Mapping
from typing import Any

POOR = "the surrogate is worse than {}, so what it finds says nothing of the encoder"


def warning_of(decoder: Mapping[str, Any] | None) -> str | None:
    """Why the decoder of a model's provenance, or of a run's results, should not be trusted; None if nothing speaks
    against it.

    The reason comes from the decoder's `validation`. For each set of held-out images it holds the L1 error, which must
    be below that of each image's own median in each channel. A surrogate on features makes no images; it holds a
    relative error, which must be below 1, that of the mean feature. An error that is not finite counts as too large. A
    model's own decoder is not judged.
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


def errors_in_words(validation: Mapping[str, Any]) -> str:
    """The errors of a surrogate on each set of held-out images, the L1 error beside that of the median colour."""

    def errors(row: Mapping[str, Any]) -> str:
        coded = f"relative feature error {_figure(row['feature_error'])}"
        if "l1" not in row:
            return coded
        return f"L1 {_figure(row['l1'])} (median colour {_figure(row['l1_median'])}), {coded}"

    return "; ".join(f"{_words(name)}: {errors(row)}" for name, row in validation.items())


def decoder_in_words(decoder: Mapping[str, Any] | None, exists: bool = True) -> str:
    """What the decoder of a model's provenance is, and how well a surrogate does on held-out images."""
    if not decoder:
        return (
            "none that is described" if exists else "none, so that there is no latent map: fmprobe.fit_decoder(model)"
        )
    if decoder.get("kind") != "surrogate":
        return f"{decoder.get('kind', 'own')}{f', {name}' if (name := decoder.get('id')) else ''}"
    rows = decoder.get("validation") or {}
    return f"a surrogate; {errors_in_words(rows)}" if rows else "a surrogate, whose errors are not known"


def warnings_in(results: Mapping[str, Any]) -> list[str]:
    """The warnings about the surrogates of a run, of both models if it compares two."""
    decoders = [results.get("decoder"), (results.get("other") or {}).get("decoder")]
    return [text for decoder in decoders if (text := warning_of(decoder)) is not None]


def _below(value: float | None, bound: float | None) -> bool:
    """Whether a value is known, finite and below a bound. A file holds null for a value that is not finite."""
    return value is not None and bound is not None and math.isfinite(value) and value < bound


def _words(name: str) -> str:
    return name.replace("_", " ")


def _figure(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.3f}"
