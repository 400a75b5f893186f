"""A key of results.json that a command renames fails here: every key is either shown, or listed as not shown."""

import importlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
from jinja2 import UndefinedError

from fmprobe.errors import InputError
from fmprobe.registry import sections
from fmprobe.report import rendering
from fmprobe.report.finished import FinishedRun
from fmprobe.report.page import make_page
from fmprobe.report.summary import summary
from fmprobe.report.surrogate import QUALITY

Place = tuple[str, ...]
REFUSED = (InputError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, UndefinedError)
KEYS = list(dict.fromkeys(section.key for section in (*sections(), QUALITY)))
# What commands write for programs only. The names stay, since programs that read results.json depend on them.
UNREAD = {
    "attractors": "errors merge.scale polished spectral_norm",  # the page takes the errors from prototypes/index.csv
    "orbits": "noise.check_evaluations noise.evaluations noise.steps.p90 noise.surplus",  # what the search cost
    "weights": "data.*.*.*.high data.*.*.*.low data.*.picture data.*.protocol",  # bounds of lines drawn without a band
    "memorization": "identity orbits sources warnings",  # orbits and sources tell how the numbers came about
    "field": "latent_shape orbits outside.max",
    "convergence": "protocol",
    "contraction": "distant.known distant.q10 distant.q90 "
    "protocol.inputs protocol.pairs_a_point protocol.relative_distance protocol.seed",
    "residual_curves": "seed",
    # What each map was fitted to, and what each number was counted from.
    "alignment": "*.drift.a *.drift.b *.maps.*.anchors *.maps.*.basins.basins *.maps.*.basins.settled_in_both "
    "*.maps.*.basins.starts *.maps.*.cosine.mean *.maps.*.penalty *.maps.*.rank *.maps.*.scale *.orbits.*.status "
    "protocol",
    # Further metrics of each score, and what the detector was fitted to.
    "ood": "convention detector.protocol detector.settings pixels "
    "detector.reference.converged_share detector.reference.distinct_ends detector.reference.held_out_pixels "
    "detector.reference.images detector.reference.in_an_attractor_share detector.reference.merge "
    "detector.reference.not_finite detector.reference.orbits detector.reference.pixels detector.reference.points "
    "scores.*.sets.*.aupr_in scores.*.sets.*.aupr_out scores.*.sets.*.fpr95_ood_positive "
    "scores.*.sets.*.intervals.aupr_in scores.*.sets.*.intervals.aupr_out scores.*.sets.*.intervals.fpr95 "
    "scores.*.sets.*.intervals.fpr95_ood_positive sets.*.control sets.*.diverged sets.in-distribution.diverged",
    "ood_scores": "detector fmprobe",
    # The page shows these in its table of provenance, with every other fact of a decoder.
    "decoder": "blur image_shape parameters pictures seconds seed steps validation.*.images warning",
}
# What the page reads beside the entries of its sections, its tables of protocol and provenance left out.
HEAD = """decodes_to_images model model.id model.latent_shape other other.decoder other.decoder.kind other.model
other.model.id other.model.latent_shape protocol protocol.measure protocol.models protocol.tol
reconstructions reconstructions.images reconstructions.picture"""


def below(content: Any) -> Iterator[tuple[str, Any]]:
    """What lies directly below by its key, or by "*" if it is in a list, has a path for a key, or is a mapping that
    shares most of its keys with one beside it.
    """
    if isinstance(content, list):
        yield from (("*", item) for item in content)
    elif isinstance(content, dict):
        keys = {key: set(value) for key, value in content.items() if isinstance(value, dict)}
        for key, value in content.items():
            others = [keys[other] for other in keys if key in keys and other != key]
            alike = any(2 * len(keys[key] & other) > len(keys[key] | other) for other in others)
            yield "*" if alike or "/" in key or ":" in key else key, value


def places(content: Any) -> dict[Place, None]:
    """Every key by the keys that lead to it, those above first."""
    found = {(key,): None for key in content} if isinstance(content, dict) else {}
    for key, value in below(content):
        found |= {(key, *place): None for place in places(value)}
    return found


def renamed(content: Any, place: Place) -> Any:
    """A copy in which the key at a place has another name."""
    copy = deepcopy(content)
    parents = [copy]
    for step in place[:-1]:
        parents = [value for parent in parents for key, value in below(parent) if key == step]
    for parent in parents:
        if isinstance(parent, dict) and place[-1] in parent:
            parent["renamed"] = parent.pop(place[-1])
    return copy


def counted(content: Any) -> Any:
    """A copy in which no count is 0, since some are shown only then."""
    if isinstance(content, dict):
        return {key: 1 if value == 0 and type(value) is int else counted(value) for key, value in content.items()}
    return [counted(item) for item in content] if isinstance(content, list) else content


def noticed(content: Any, made: Callable[[Any], Iterator[Any]]) -> set[Place]:
    """The places whose key cannot be renamed without a change of what is `made`, or a refusal."""
    before, found, tried = list(made(content)), set(), places(content)
    for place in tried:
        if len(place) > 1 and place[:-1] in tried and place[:-1] not in found:
            continue  # nothing reads what lies above
        try:
            same = all(now == then for now, then in zip(made(renamed(content, place)), before, strict=True))
        except REFUSED:
            same = False
        if not same:
            found.add(place)
    return found


@pytest.fixture(autouse=True)
def sketched(written, monkeypatch):
    """Figures as their words and their lines, which cost less than drawing them.

    What commands write for other tests too is written before, and `show` keeps the function that draws.
    """
    for name in written.pages():
        written(name)
    importlib.import_module("fmprobe.report.show")

    def sketch(figure, title, prefix=None):
        words = [(ax.get_title(), ax.get_xlabel(), ax.get_legend_handles_labels()[1]) for ax in figure.axes]
        drawn = [artist for ax in figure.axes for artist in (*ax.lines, *ax.patches, *ax.collections, *ax.images)]
        return str([title, *words, *(str(getattr(a, "get_xydata", a.get_label)()) for a in drawn)])

    monkeypatch.setattr(rendering, "to_svg", sketch)


def shown(run: FinishedRun, key: str, entry: Any) -> Iterator[Any]:
    """What is made of an entry for the terminal, the page and notebooks."""
    yield summary({key: entry})
    for section in (*sections(), QUALITY):
        if section.key == key and section.across is None:
            yield [(table, table.to_csv()) for table in section.tables(entry)]
            yield section.markup(entry, run)
            yield [rendering.to_svg(figure, title) for title, figure in dict(section.figures(entry)).items()]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_an_entry_is_shown_or_known_not_to_be(key, written):
    runs = [FinishedRun(written(name)) for name in written.pages()]
    runs = [run for run in runs if run.results.get(key) is not None]
    assert runs, f"no command writes {key!r}"
    there, read = set(), set()
    for run in runs:
        entry = counted(run.results[key])
        there |= {*places(entry)}
        read |= noticed(entry, lambda entry, run=run: shown(run, key, entry))
    unread = {place for place in there - read if len(place) == 1 or place[:-1] not in there - read}
    assert {".".join(place) for place in unread} == {*UNREAD.get(key, "").split()}


def test_the_other_keys_that_a_page_reads_are_these(written):
    """What sections and the head of the page read beside the entries that are the sections' own."""
    read = set()
    for name in ("surrogate", "comparison", "language"):
        run = FinishedRun(written(name))
        whole = run.results

        def page(head, run=run, whole=whole):
            run.results = {**{key: entry for key, entry in whole.items() if key in KEYS}, **head}
            run.__dict__.pop("name", None)  # which is kept once it was asked for
            yield make_page([run]).partition('<section id="provenance"')[0]

        read |= noticed({key: entry for key, entry in whole.items() if key not in KEYS}, page)
    assert {".".join(place) for place in read} == {*HEAD.split()}
