"""A run in a few lines, for the terminal, the head of a report and notebooks."""

from collections.abc import Mapping, Sequence
from typing import Any

from fmprobe.report.alignment import SERIES
from fmprobe.report.rendering import number
from fmprobe.validation import warning_of


def summary(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what a run found, by the keys that its results have."""
    rows: list[tuple[str, str]] = []
    for key, lines in _LINES.items():
        if results.get(key):
            rows += lines(results[key])
    return rows


def as_table(rows: Sequence[tuple[str, str]]) -> str:
    """Rows as text in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:{width}}  {value}".rstrip() for name, value in rows)


def _model(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("model", f"{found['id']}, latents {' x '.join(map(str, found['latent_shape']))}")]


def _decoder(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    if found.get("kind") != "surrogate":
        return [("decoder", "the model's own" if found.get("kind") == "own" else str(found.get("kind")))]
    rows = [("decoder", "a surrogate: what follows is of encoder and surrogate together")]
    return rows if (text := warning_of(found)) is None else [*rows, ("warning", text)]


def _other(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The second of two models that are compared."""
    rows = _model(found["model"]) + (_decoder(found["decoder"]) if found.get("decoder") else [])
    return [(f"other {name}", value) for name, value in rows]


def _orbits(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    orbits = found["noise"]
    statuses = ", ".join(f"{count} {name}" for name, count in orbits["status"].items() if count)
    rows = [("orbits", f"{statuses} of {orbits['starts']}")]
    if orbits["steps"]["median"] is not None:
        rows.append(("steps", f"median {orbits['steps']['median']:.0f}, at most {orbits['steps']['max']}"))
    return rows


def _attractors(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    count = "unresolved" if found["count"] is None else str(found["count"])
    merge = found["merge"]
    count += f" by {merge['measure']} distance {merge['threshold']:g}"
    count += "".join(f" ({also['count']} by {name} {also['threshold']:g})" for name, also in merge["also"].items())
    rows = [("attractors", count)]
    if found["unresolved"]:
        rows.append(("unresolved", f"{found['unresolved']} starts met the tolerance too far from a fixed point"))
    if found["unstable"]:
        rows.append(("unstable", f"{found['unstable']} fixed points that repel, left out"))
    if unknown := found.get("stability_unknown"):
        examined = found.get("examined")
        rows.append(("stability unknown", f"{unknown} of {examined} attractors examined: no certain radius; kept"))
    if damaged := found.get("images_not_finite"):
        rows.append(("not finite", f"pixels of {damaged} of {len(found['sizes'])} decoded attractors, shown black"))
    if found["sizes"]:
        more = ", …" if len(found["sizes"]) > 12 else ""
        rows.append(("basins", ", ".join(map(str, found["sizes"][:12])) + more))
    known = [radius for radius in found["spectral_radius"] if radius is not None]
    if known:
        rows.append(("spectral radius", f"{min(known):.3f} to {max(known):.3f}"))
    return rows


def _weights(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "data" not in found:  # curves of one set of images, as `probe_weights` gives them
        return [("weights", _best(found))]
    return [(f"weights, {source.rsplit('/', 1)[-1]}", _best(curves)) for source, curves in found["data"].items()]


def _best(curves: Mapping[str, Any]) -> str:
    """Image MSE of the model's atoms at the most atoms, beside the best other dictionary there, whichever wins."""
    subject, *others = ((name, row["image_mse"][-1]["mean"]) for name, row in curves["dictionaries"].items())
    text = f"image MSE at {curves['levels'][-1]} atoms: {subject[0]} {number(subject[1], '.4f')}"
    if finite := [pair for pair in others if pair[1] is not None]:
        name, value = min(finite, key=lambda pair: pair[1])
        text += f"; best of the others, {name} {number(value, '.4f')}"
    return text


def _memorization(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not found["count"]:
        return [("memorization", found["warning"] or "not known: no attractor")]
    levels = found["levels"]["cosine"]
    null = levels.get("test images") or levels["noise images"]
    name = "test images" if levels.get("test images") else "noise images"
    nearest = f"cosine {number(found['coefficient'], '.3f')} of {found['count']} {found['subject']}"
    text = f"{nearest} to the nearest training image; {name} {number(null['mean'], '.3f')}"
    return [("memorization", text)]


def _alignment(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """By map the median cosine of the fields, beside the null's and the ceiling's."""
    rows = []
    for name in found["subject"]["maps"]:
        cosines = {label: (found[part] or {"maps": {}})["maps"].get(name) for part, (label, _) in SERIES.items()}
        shown = [
            f"{label} {row['cosine']['q50']:.3f}" for label, row in cosines.items() if row and row["cosine"]["known"]
        ]
        rows.append((f"fields, {name}", "median cosine: " + (", ".join(shown) or "not known")))
    return rows


def _ood(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """AUROC in percent of the published score beside the best baseline, known afterwards."""
    rows = []
    scores = {row["name"]: row for row in found["scores"]}
    baselines = [row for row in found["scores"] if row["group"] == "baseline"]
    for name in found["sets"]:
        if name == "in-distribution":
            continue
        best = max(baselines, key=lambda row: row["sets"][name]["auroc"])
        text = f"AUROC {100 * scores['trajectory']['sets'][name]['auroc']:.1f}; {best['name']} "
        rows.append((f"ood, {name}", text + f"{100 * best['sets'][name]['auroc']:.1f}"))
    return rows


def _scored(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    unreadable = f"; {found['unreadable']} could not be read" if found["unreadable"] else ""
    return [("accepted", f"{found['accepted']} of {found['images']} by {found['rule']!r}{unreadable}")]


def _not_finite(found: Mapping[str, int]) -> list[tuple[str, str]]:
    """How many numbers were nan or infinite, by the part of the results that they belong to."""
    counts = ", ".join(f"{count} of {part}" for part, count in found.items())
    return [("not finite", f"{counts}: null in results.json")]


_LINES = {
    "model": _model,
    "decoder": _decoder,
    "other": _other,
    "orbits": _orbits,
    "attractors": _attractors,
    "weights": _weights,
    "memorization": _memorization,
    "alignment": _alignment,
    "ood": _ood,
    "ood_scores": _scored,
    "not_finite": _not_finite,
}
