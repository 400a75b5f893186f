"""A run in a few lines, for the terminal, the head of a report and notebooks."""

from collections.abc import Mapping, Sequence
from typing import Any

from fmprobe.places import is_place, name_of
from fmprobe.registry import sections
from fmprobe.tables import Table, times
from fmprobe.validation import errors_in_words, warning_of

Lines = list[tuple[str, str]]


def summary(results: Mapping[str, Any]) -> Lines:
    """Names and values of what a run found, in the order of the keys of its results.

    What survives leads: it is said of the encoder, and all below it of one surrogate.
    """
    own = {"model": _model, "decoder": _decoder, "other": _other, "not_finite": _not_finite}
    by_key: dict[str, list[Any]] = {key: [lines] for key, lines in own.items()}
    for section in sections():
        by_key.setdefault(section.key, []).append(section.lines)
    ordered = sorted(results, key=lambda key: key != "what_survives")
    return [row for key in ordered if results[key] for lines in by_key.get(key, ()) for row in lines(results[key])]


def sentences(results: Mapping[str, Any]) -> list[str]:
    """What a run found, in words: a sentence or two of each section that says something, in the order of the page."""
    said = [section.sentence(results[section.key], results) for section in sections() if results.get(section.key)]
    decoder = results.get("decoder") or {}
    if any(said) and decoder.get("kind") == "surrogate":
        said.append("All that follows from orbits is a finding on the encoder and its surrogate decoder together.")
        if warning_of(decoder) is not None:
            said.append("The surrogate is too poor to say anything of the encoder.")
    return [text for text in said if text]


def tables(results: Mapping[str, Any], *keys: str) -> list[Table]:
    """The tables of some entries of a run's results."""
    return [table for section in sections() if section.key in keys for table in section.tables(results[section.key])]


def as_table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values as text in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:{width}}  {value}".rstrip() for name, value in rows)


def _model(found: Mapping[str, Any]) -> Lines:
    name = name_of(found["id"]) if is_place(found["id"]) else found["id"]
    return [("model", f"{name}, latents {times(found['latent_shape'])}")]


def _decoder(found: Mapping[str, Any]) -> Lines:
    if found.get("kind") == "published":
        return [("decoder", f"published for this encoder: {found['id']}")]
    if found.get("kind") != "surrogate":
        return [("decoder", "the model's own" if found.get("kind") == "own" else str(found.get("kind")))]
    rows = [("decoder", "a surrogate: what follows is a finding on encoder and surrogate together")]
    if found.get("validation"):
        rows.append(("its errors", errors_in_words(found["validation"])))
    return rows if (text := warning_of(found)) is None else [*rows, ("warning", text)]


def _other(found: Mapping[str, Any]) -> Lines:
    """The second of two models that are compared."""
    rows = _model(found["model"]) + (_decoder(found["decoder"]) if found.get("decoder") else [])
    return [(f"other {name}", value) for name, value in rows]


def _not_finite(found: Mapping[str, int]) -> Lines:
    """Number of values that were nan or infinite, by the part of the results that they belong to."""
    counts = ", ".join(f"{count} of {part}" for part, count in found.items())
    return [("not finite", f"{counts}: null in results.json")]
