"""The run of a command: one folder, from opening it until its page is written."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import typer

from fmprobe import __version__
from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.files import finite, plain, read_json
from fmprobe.hub import canonical
from fmprobe.nodes import is_apart, reached
from fmprobe.report.page import write_report
from fmprobe.report.summary import as_table, sentences, summary, tables
from fmprobe.runs import config
from fmprobe.runs.folder import MANIFEST, SOURCES, RunFolder, differences
from fmprobe.runs.sweeps import Work, sweep
from fmprobe.sharing import is_main, launched, team
from fmprobe.tables import as_text
from fmprobe.validation import warnings_in

PLACES = {"model", "models", "decoder", "decoders", *SOURCES}  # entries of a manifest that may be paths


class Run:
    """A run folder that the processes of this launch share and that other launches are kept out of.

    All processes go through a command together. The main process writes the results.

    Attributes:
        path: the folder.
        results: the content of `results.json`; empty as long as there is none.
    """

    def __init__(self, folder: RunFolder, began: float) -> None:
        self.folder, self.path, self.began = folder, folder.path, began
        self.results: dict[str, Any] = folder.results or {}
        self._at_work = False

    @classmethod
    @contextmanager
    def open(
        cls, out: Path, asked: Mapping[str, Any], *, began: float, resume: bool = True, verbose: bool = False
    ) -> Iterator["Run"]:
        """Open a new run, or resume one that was asked for the same.

        Args:
            out: the folder.
            asked: everything that decides the results, as JSON holds it. It is the run's identity.
            began: when the command began, by `time.perf_counter`.
            resume: whether to resume a run in the folder; otherwise it is deleted.
            verbose: whether each event of `events.jsonl` is printed too.

        Raises:
            InputError: the folder holds something else or another run, another process is at work there, or it cannot
                be written.
        """
        asked = {**asked, "fmprobe": __version__}
        made = RunFolder.open(out, asked, resume) if is_main() else None
        with made.locked() if made else nullcontext(), reached(out, scratch=True, left_out=RunFolder.left_out) as path:
            folder = RunFolder(path)
            folder.heard = (lambda line: typer.echo(line, err=True)) if verbose else None
            if is_apart(path):
                _check_same(read_json(path / MANIFEST), asked)
            if is_main() and not (out / config.FILE).is_file():
                config.keep(out)
            run = cls(folder, began)
            team().barrier()  # now every process has read the results that are there
            yield run

    def once(
        self,
        name: str,
        make: Callable[[], Mapping[str, Any] | None],
        *,
        same: Callable[[Any], bool] = bool,
        what: str = "this run",
        discard: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Compute the entry `name` unless the folder holds it; return all results.

        Args:
            name: the entry of `results.json` that shows whether the part is done.
            make: computes the part, with all processes together. The main process returns the entries to add.
            same: whether the entry that is there belongs to what is asked for now.
            what: what the terminal calls the part.
            discard: folders of intermediate results that are not needed once the part is done.
        """
        if team().told(lambda: bool(same(self.results.get(name)))):
            typer.echo(f"{self.path} holds {what} already (--no-resume runs it again)")
            self._discard(discard)  # a kill may have come before they were discarded
            return self.results
        self._begin()
        return self.put(make() or {}, discard=discard)

    def put(self, entries: Mapping[str, Any], *, discard: Sequence[str] = ()) -> dict[str, Any]:
        """Add entries to `results.json`, by which the run counts as done; return all results in every process.

        Args:
            entries: entries as JSON holds them, from the main process.
            discard: folders of intermediate results that are not needed any more.
        """
        if is_main():
            config.keep(self.path)  # a command that was refused has not taken the place of one that was done
            self.folder.finish({**self.results, **entries})
            self._discard(discard)
        team().barrier()
        self.results = self.folder.results or {}
        return self.results

    def _discard(self, folders: Sequence[str]) -> None:
        for name in folders if is_main() else ():
            shutil.rmtree(self.path / name, ignore_errors=True)

    def shared(self, folder: str, work: Work, conditions: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Results of named conditions that the processes share; each is kept in a folder of the run (see `sweep`)."""
        self._begin()
        yield from sweep(work, conditions, self.path / folder)
        team().barrier()  # now every process has read the parts

    def pin(self, name: str, make: Callable[[], Any]) -> Any:
        """What was decided under this name when the run began; if nothing was, the main process decides it now."""
        with team().main_first():
            return self.folder.pin(name, make)

    def _begin(self) -> None:
        """Tell that work begins, once. A command that is refused, or that finds everything done, tells nothing."""
        if is_main() and not self._at_work:
            self.folder.tell("begin", processes=launched())
        self._at_work = True

    def tell(self, event: str, **facts: Any) -> None:
        """Append an event to `events.jsonl`."""
        self.folder.tell(event, **facts, process=team().rank)

    def pin_circumstances(self, model: Autoencoder, name: str) -> None:
        """Pin the versions, the kind of device and the decoder that a part begins with.

        Only the main process checks them, because a decoder that the processes fitted together records a different time
        in each.

        Raises:
            InputError: the part was begun under other circumstances.
        """
        if not is_main():
            return
        import torch
        import transformers

        now = {
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "device": model.device.type,
            "decoder": model.provenance.get("decoder"),
            "revision": model.provenance.get("revision"),
        }
        pinned = self.folder.pin(f"{name}: circumstances", lambda: now)
        if (changed := differences(pinned, finite(json.loads(json.dumps(now)))[0])) != "":
            raise InputError(f"{self.path} was begun otherwise ({changed}): name another --out, or --no-resume")

    @property
    def seconds(self) -> float:
        """Time since the command began, in seconds."""
        return round(time.perf_counter() - self.began, 1)

    def finish(self, *keys: str, beside: Sequence[tuple[str, str]] = ()) -> Path:
        """Write the page and print the outcome: warnings, the tables of the entries `keys`, and the summary.

        Args:
            keys: entries of `results.json` whose tables are printed.
            beside: further lines of the summary.
        """
        if is_main():
            write_report(self.path)
            for text in warnings_in(self.results):
                typer.echo(f"\nwarning     {text}")
            if shown := tables(self.results, *keys):
                typer.echo("\n" + as_text(shown))
            if said := sentences(self.results):
                typer.echo("\n" + "\n".join(said))
            report = ("report", str(self.path / "report.html"))
            typer.echo("\n" + as_table([*summary(self.results), *beside, report]))
        return self.path


def _check_same(manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise InputError where a process of another node comes with something else than the main process.

    Paths may differ, since each node has its own; digests tell whether they lead to the same.
    """
    here, there = ({key: of.get(key) for key in asked.keys() - PLACES} for of in (asked, manifest))
    if changed := differences(there, json.loads(json.dumps(here, default=plain))):
        raise InputError(f"the nodes of this launch came with different things ({changed}): give each node the same")


def head(model: Autoencoder, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What every `results.json` begins with."""
    provenance = {**model.provenance, "fingerprint": model.fingerprint}
    decoder = provenance.pop("decoder")
    if decoder and decoder.get("kind") == "surrogate":
        decoder = {**decoder, "warning": model.surrogate_warning}
    return {
        "fmprobe": __version__,
        "command": shlex.join(["fmprobe", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": str(model.device),
        "model": {
            "id": provenance.pop("model"),
            **provenance,
            "image_shape": list(model.image_shape),
            "latent_shape": list(model.latent_shape),
        },
        "decoder": decoder,
        "decodes_to_images": model.has_decoder,
        "protocol": dict(protocol),
    }


def default_out(name: str, suffix: str = "") -> Path:
    """The default folder of results: `runs/` and the last part of the model's name."""
    return Path("runs") / f"{Path(canonical(name)).name or 'model'}{suffix}"


def named(load: Mapping[str, Any]) -> dict[str, Any]:
    """How a model is loaded, as a manifest holds it. Its decoder is given by the one name of its folder."""
    return {**load, **{key: canonical(load[key]) for key in ("decoder",) if load.get(key) is not None}}


def identity(model: Autoencoder) -> dict[str, str | None]:
    """What decides a model's values, as a manifest holds it; a checkpoint or a decoder may change under its name."""
    decoder = None if model.surrogate is None else model.surrogate.fingerprint
    return {"fingerprint": model.fingerprint, "decoder_fingerprint": decoder}
