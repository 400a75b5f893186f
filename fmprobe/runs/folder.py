"""Run folders: a manifest that pins what a run is, and results that are written last."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from fmprobe.artefacts import Artefact, copy_shared
from fmprobe.cards import Base, Card, Metric
from fmprobe.errors import InputError
from fmprobe.files import RESULTS, SCHEMA, finite, plain, read_json, write_json
from fmprobe.nodes import append
from fmprobe.report.finished import FinishedRun
from fmprobe.report.page import write_report
from fmprobe.report.summary import summary
from fmprobe.validation import warnings_in

try:
    import fcntl
except ImportError:  # Windows has no fcntl
    fcntl = None

MANIFEST, EVENTS, PAGE = "manifest.json", "events.jsonl", "report.html"
SOURCES = ("data", "test", "ood")  # what a manifest calls sources of images
LOADED = """import fmprobe

run = fmprobe.RunFolder.from_pretrained({source})
run.results, run.path
"""
ATTRACTORS = """attractors = fmprobe.AttractorSet.from_pretrained({source}, subfolder="attractors")
"""


class RunFolder(Artefact):
    """A folder with a manifest, which pins what the run is, and with `results.json`, which is written last.

    `manifest.json` holds what was asked for. Under `pinned` it holds what was decided when the run began, which a
    resumed run takes over. `events.jsonl` records what happened, one JSON object a line.

    Attributes:
        path: the folder.
        heard: is called with each event as a line of text, if it is not None.
    """

    left_out: ClassVar[tuple[str, ...]] = ("*shards", EVENTS)

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.heard: Callable[[str], object] | None = None

    @classmethod
    def open(cls, path: Path, manifest: Mapping[str, Any], resume: bool = True) -> "RunFolder":
        """Open a new run folder, or resume a run of the same manifest.

        Args:
            path: the folder.
            manifest: what is asked for.
            resume: whether to resume a run; otherwise a run in the folder is deleted and started anew.

        Raises:
            InputError: the folder holds something else, another run or a run that is in progress, or it cannot be
                written.
        """
        wanted = json.loads(json.dumps(manifest, allow_nan=False, default=plain))
        folder = cls(path)
        try:
            if path.exists() and not path.is_dir():
                raise InputError(f"{path} is a file: name a folder for the results with --out")
            path.mkdir(parents=True, exist_ok=True)
            with folder.locked():
                _tidy(path.glob(f".{MANIFEST}.*.tmp"))
                if not (any(path.iterdir()) and folder._goes_on(wanted, resume)):
                    write_json(path / MANIFEST, wanted)
                _tidy(path.rglob(".*.tmp"))
        except InputError:
            raise
        except (OSError, ValueError) as error:  # a name with a null character raises ValueError
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot write to {str(path)!r}: {reason}; name another folder with --out") from error
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """A finished run. Raises InputError where the folder holds none."""
        return cls(FinishedRun(Path(folder)).folder)

    def _save_pretrained(self, save_directory: Path) -> None:
        FinishedRun(self.path)
        copy_shared(self.path, save_directory, self.left_out)

    @classmethod
    def _finish(cls, folder: Path) -> None:
        """Make the page again, of the cleaned results."""
        if (folder / PAGE).is_file():
            write_report(folder)

    @classmethod
    def card_of(cls, folder: Path) -> Card:
        """What the card says of a finished run."""
        run = FinishedRun(folder)
        found, rows = run.results, [row for row in summary(run.results) if row[0] != "model"]
        models = [one["model"] for one in (found, found.get("other") or {}) if one.get("model")]
        bases = [Base(str(model.get("id")), model.get("revision")) for model in models]
        words = str(found.get("command", "fmprobe")).split()[:2]
        head = f"`{PAGE}` shows what `{' '.join(words)}` of version {found.get('fmprobe')} found."
        warned = [f"**Warning:** {text}." for text in warnings_in(found)]
        table = ["| | |", "|---|---|", *(f"| {name} | {_in_a_cell(text)} |" for name, text in rows)]
        text = "\n\n".join([head, *warned, "\n".join(table)])
        kept = (folder / "attractors" / "attractors.json").is_file()
        return Card(
            title=f"Run on {' and '.join(dict.fromkeys(base.shown for base in bases)) or folder.name}",
            text=text,
            load=LOADED + (ATTRACTORS if kept else ""),
            tags=words[1:],
            bases=bases,
            sources=list(_sources(folder)),
            metrics=list(_metrics(found)),
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder while work goes on in it.

        Raises:
            InputError: another process is at work there.
        """
        if fcntl is None:
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"another run is at work in {self.path}: wait for its end, or name another --out"
                ) from error
            except OSError:  # the file system has no locks
                pass
            yield
        finally:
            os.close(handle)

    def _goes_on(self, wanted: dict[str, Any], resume: bool) -> bool:
        """Whether the folder holds this run. One that is to be started anew is deleted, but no other run within it."""
        if not (self.path / MANIFEST).is_file():
            raise InputError(f"{self.path} is not empty and is no run folder: name another folder with --out")
        present = read_json(self.path / MANIFEST)
        present.pop("pinned", None)
        changes = differences(present, wanted)
        if resume and not changes:
            return True
        if resume:
            raise InputError(
                f"{self.path} holds another run ({changes}): name another folder with --out, or add --no-resume to "
                "start anew"
            )
        # Results are deleted first and the manifest last, so that a kill in between leaves no run that looks finished.
        (self.path / RESULTS).unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if entry.name != MANIFEST and ("atlas" in present or not _holds_run(entry)):  # runs of an atlas are its own
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        return False

    def pin(self, name: str, make: Callable[[], Any]) -> Any:
        """What was decided under this name when the run began; if nothing was, it is decided now."""
        manifest = read_json(self.path / MANIFEST)
        pinned = manifest.setdefault("pinned", {})
        if name not in pinned:
            pinned[name] = finite(json.loads(json.dumps(make(), default=plain)))[0]
            write_json(self.path / MANIFEST, manifest)
        return pinned[name]

    def tell(self, event: str, **facts: Any) -> None:
        """Append an event to `events.jsonl`. Several processes may do so. A log that cannot be written stops no run."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, default=plain) + "\n"
        if self.heard is not None:
            self.heard(f"{event}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
        with contextlib.suppress(InputError):
            append(self.path / EVENTS, line.encode())

    @property
    def results(self) -> dict[str, Any] | None:
        """What a finished run found; None as long as there are no results."""
        path = self.path / RESULTS
        return read_json(path) if path.is_file() else None

    def finish(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Write `results.json`, from which on the run counts as done. Return its content.

        Numbers that are not finite become null, and `not_finite` counts them by the key that they lie under.
        """
        before, content, counts = self.results or {}, {"schema": SCHEMA}, {}
        earlier = before.get("not_finite") or {}
        for key, value in results.items():
            content[key], count = finite(value)
            # A part that an earlier command wrote and this one keeps holds null already.
            count = count or (earlier.get(key, 0) if content[key] == before.get(key) else 0)
            counts |= {key: count} if count else {}
        content.pop("not_finite", None)
        content |= {"not_finite": counts} if counts else {}
        write_json(self.path / RESULTS, content)
        self.tell("finished", **({"not_finite": counts} if counts else {}))
        return content


def _in_a_cell(text: str) -> str:
    """A text as a cell of a table in Markdown, and no markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _sources(folder: Path) -> Iterator[Any]:
    """The sources of images that the manifest of a run names, of every shape that commands give them."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    for key in SOURCES:
        given = manifest.get(key)
        yield from given.values() if isinstance(given, Mapping) else given if isinstance(given, list) else [given]


def _metrics(results: Mapping[str, Any]) -> Iterator[Metric]:
    """The figures of a run that its card lists."""
    found = results.get("attractors") or {}
    if "count" in found:
        yield Metric("attractors", found["count"], "starts drawn from N(0, I)")
    ood = results.get("ood") or {}
    rule = ((ood.get("detector") or {}).get("decision") or {}).get("rule")
    for score in ood.get("scores") or ():
        for name, row in score["sets"].items() if score["name"] == rule else ():
            yield from (Metric(key, row[key], f"{name}, by {rule}") for key in ("auroc", "fpr95"))


def _holds_run(entry: Path) -> bool:
    """Whether an entry is a folder that is a run, or that has one somewhere within."""
    return entry.is_dir() and not entry.is_symlink() and next(entry.rglob(MANIFEST), None) is not None


def _tidy(left: Iterable[Path]) -> None:
    """Remove what a run that was killed had begun to write."""
    for path in left:
        path.unlink(missing_ok=True)


def differences(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The keys in which two manifests differ, in one line. A key that is None equals one that is absent."""
    keys = sorted(k for k in {*present, *wanted} if not _alike(present.get(k), wanted.get(k)))
    return ", ".join(f"{k}: {present.get(k)!r} there, {wanted.get(k)!r} now" for k in keys)


def _alike(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same: None equals absent, and 1 equals 1.0, but 0 does not equal False."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return all(_alike(a.get(key), b.get(key)) for key in {*a, *b})
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return a == b


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run folder in the order in which they were written. A line that a kill cut short is left out."""
    path = folder / EVENTS
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            events += [event] if isinstance(event, dict) else []
    return events
