"""report.html: one self-contained page on one run folder, or on several side by side."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fmprobe.errors import InputError
from fmprobe.files import write_atomically
from fmprobe.glossary import TERMS
from fmprobe.places import names_of
from fmprobe.registry import sections as registered
from fmprobe.report.facts import facts, side_by_side
from fmprobe.report.finished import FinishedRun
from fmprobe.report.rendering import digest_of, render, text_of
from fmprobe.report.sections import Section
from fmprobe.report.summary import sentences, summary
from fmprobe.report.surrogate import QUALITY
from fmprobe.tables import rounded
from fmprobe.validation import warnings_in


def write_report(folders: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Make one page on finished runs and return its path. If a folder is not fit for it, nothing is written.

    Args:
        folders: the run folders.
        out: the file; by default `report.html` in the first folder.

    Raises:
        InputError: a folder holds no finished run, or its contents do not fit together.
    """
    folders = [folders] if isinstance(folders, Path) else list(folders)
    page = make_page([FinishedRun(folder, i) for i, folder in enumerate(folders)])
    path = out or folders[0] / "report.html"
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file for the report with --out")
    try:
        if out is not None and path.is_file() and not _is_page(path):
            raise InputError(f"{path} exists and is no page: name another file for the report with --out")
        # Results may name a path that the system's encoding could not decode, and UTF-8 lacks its characters.
        content = page.encode("utf-8", "backslashreplace")
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; name another file with --out") from error
    return path


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip().lower().startswith(b"<!doctype html")


def make_page(runs: Sequence[FinishedRun]) -> str:
    """The page as text."""
    script = text_of("page.js")
    labels = _labels(runs)
    sections = [
        {"title": section.title, "anchor": section.anchor, "lead": section.lead, "columns": columns}
        for section in (*registered(), QUALITY)
        if (columns := _columns(section, runs, labels))
    ]
    if not sections:
        named = " and ".join(str(run.folder) for run in runs)
        raise InputError(f"{named} holds nothing that a report shows: run the command again with --no-resume")
    per_run = [_checked(run, "summary", lambda run: dict(summary(run.results))) for run in runs]
    said = [_checked(run, "summary", lambda run: sentences(run.results)) for run in runs]
    return render(
        "page.html",
        names=labels,
        labels=labels,
        subtitle=_subtitle(runs),
        said=list(zip(labels, said, strict=True)),
        summary=side_by_side(per_run),
        notes=[note for run, label in zip(runs, labels, strict=True) for note in _notes(run, label)],
        sections=sections,
        commands=[(label, run.results.get("command", "not recorded")) for run, label in zip(runs, labels, strict=True)],
        facts=facts(runs),
        terms=TERMS,
        style=text_of("style.css"),
        script=script,
        script_hash=digest_of(script),
    )


def _labels(runs: Sequence[FinishedRun]) -> list[str]:
    """Names of the runs, with as much of their folders as tells those apart that share a name."""
    names = [run.name for run in runs]
    folders = [str(run.folder.absolute()) for run in runs]
    called = names_of(set(folders))
    found = [
        f"{name} ({called[folder]})" if names.count(name) > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]
    return [f"{name}, {found[:i].count(name) + 1}" if found.count(name) > 1 else name for i, name in enumerate(found)]


def _subtitle(runs: Sequence[FinishedRun]) -> str:
    """The line below the title."""
    if all("orbits" in run.results for run in runs):
        starts = " and ".join(rounded(run.results["orbits"]["noise"]["starts"]) for run in runs)
        return f"Attractors of the latent map f(z) = E(D(z)) from {starts} starts drawn from N(0, I), not from data."
    return "The latent map f(z) = E(D(z)), iterated."


def _columns(section: Section, runs: Sequence[FinishedRun], labels: Sequence[str]) -> list[dict[str, Any]]:
    """What a section shows of each run that has its key, or of all together. An empty body is left out."""
    columns = []
    if (across := section.across) is not None:
        having = [(run, label) for run, label in zip(runs, labels, strict=True) if run.results.get(section.key)]
        if len(having) < 2:
            return []
        every, names = zip(*having, strict=True)
        body = _checked(having[0][0], section.title, lambda _: across(every, names))
        return [{"label": None, "body": body}] if body else []  # the body names the runs itself
    for run, label in zip(runs, labels, strict=True):
        if run.results.get(section.key) is not None:
            body = _checked(run, section.title, lambda run: section.markup(run.results[section.key], run))
            columns += [{"label": label, "body": body}] if body else []
    return columns


def _checked(run: FinishedRun, what: str, make: Callable[[FinishedRun], Any]) -> Any:
    """Apply `make` to a run, and turn errors in the run's contents into an InputError that names the folder."""
    from jinja2 import UndefinedError

    try:
        return make(run)
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, UndefinedError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"{run.folder / 'results.json'} does not hold what the section {what!r} needs ({reason}): "
            "run the command again with --no-resume"
        ) from error


def _notes(run: FinishedRun, label: str) -> list[dict[str, str]]:
    """What a reader must know before looking at anything else."""
    results, notes = run.results, []
    found = results.get("attractors") or {}
    if (results.get("decoder") or {}).get("kind") == "surrogate":
        notes.append(
            (
                "The decoder is a surrogate.",
                "The encoder has no decoder of its own, so this is a finding on the encoder and a decoder fitted to it "
                "together. Only a comparison with a second surrogate can show what holds for the encoder alone.",
            )
        )
    # What survives was found with other surrogates than the one that the warning is about.
    of = "The attractors are no" if "what_survives" in results else "Nothing below is a"
    notes += [(f"{of} finding on the encoder.", f"{text[0].upper()}{text[1:]}.") for text in warnings_in(results)]
    if found.get("unresolved"):
        notes.append(
            (
                f"{found['unresolved']} starts are unresolved.",
                "Their steps fell below the tolerance, but so slowly that the fixed point may be farther away than "
                "half the merge distance. They belong to no attractor, so the count is a lower bound.",
            )
        )
    if found.get("unstable"):
        notes.append(
            (f"{found['unstable']} unstable fixed points", "were reached and left out, because they attract no orbits.")
        )
    if found.get("stability_unknown"):
        notes.append(
            (
                f"Stability unknown: {found['stability_unknown']} of {found.get('examined')} attractors examined.",
                "The spectral radius of their Jacobian could not be made certain. They are kept and counted, but may "
                "be fixed points that repel.",
            )
        )
    return [{"run": label, "title": title, "text": text} for title, text in notes]
