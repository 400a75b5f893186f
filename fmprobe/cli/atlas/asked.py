"""The models that an atlas is asked for: their names, the options of each, and their folders."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer

from fmprobe.digests import digest
from fmprobe.errors import InputError
from fmprobe.hub import canonical
from fmprobe.runs import options as o

DEMO = "demo"  # the embedded model
OWN = ("out", "resume", "verbose")  # options of `probe` that the atlas itself decides
LONGEST = 80  # characters of a folder's name that come from a model's


@dataclass(frozen=True)
class Asked:
    """A model of an atlas.

    Attributes:
        name: the model as it was named.
        options: options of `probe` by name, those that were given.
    """

    name: str
    options: Mapping[str, Any]

    @property
    def place(self) -> str:
        """The model as `probe` takes it."""
        if self.name != DEMO:
            return self.name
        from importlib.resources import files

        return str(files("fmprobe.demo") / "vit-mae-digits")

    def own(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """The options that are not those of all models."""
        return {key: value for key, value in self.options.items() if common.get(key) != value}

    @property
    def label(self) -> str:
        """What the model is called on the page: its name, of a folder the last part."""
        local = self.name != DEMO and os.path.exists(self.name)
        return Path(canonical(self.name)).name if local else self.name

    def folder(self, common: Mapping[str, Any]) -> str:
        """The name of the model's folder, which no other model has.

        It is the name of the model itself, if that says all; else a digest of the place and of the model's own options
        follows it.
        """
        whole, own = DEMO if self.name == DEMO else canonical(self.name), self.own(common)
        said = Path(whole).name if os.path.isabs(whole) else whole.replace("/", "--")
        readable = re.sub(r"[^\w.-]+", "-", said).strip("-.")[:LONGEST] or "model"
        alone = not own and readable == whole.replace("/", "--")
        return readable if alone else f"{readable}-{digest(whole, own)[:8]}"

    def command(self, name: str, out: Path, more: Sequence[str] = (), only: Sequence[str] | None = None) -> list[str]:
        """The words of a command on this model.

        Args:
            name: the command.
            out: its folder.
            more: words of its own.
            only: names of the options that it takes; all by default.
        """
        taken = {key: value for key, value in self.options.items() if only is None or key in only}
        return [name, self.place, *more, *spelled(taken), "--out", str(out)]


def spelled(options: Mapping[str, Any]) -> list[str]:
    """Options by name, as the command line spells them."""
    words = []
    for key, value in options.items():
        option = "--starts" if key == "n" else f"--{key.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    return words


def asked_for(names: Sequence[str], file: Path | None, common: Mapping[str, Any]) -> list[Asked]:
    """The models of the command line and of a list, each once; one that is named again is dropped with a line.

    Args:
        names: the models of the command line.
        file: a list of models, if there is one.
        common: options of `probe` for all models, those that were given.

    Raises:
        InputError: there is no model, or the list or a line of it cannot be understood.
    """
    found: dict[str, Asked] = {}
    for one in [Asked(_checked(name, name), common) for name in names] + (_listed(file, common) if file else []):
        if (folder := one.folder(common)) in found:
            typer.echo(f"{one.name} is named twice: it is probed once")
        found.setdefault(folder, one)
    if not found:
        raise InputError(
            f"{file} names no model: write one a line" if file else "no model: name at least one, or a list with --list"
        )
    return list(found.values())


def _checked(name: str, where: str) -> str:
    if not name.strip() or name.startswith("-") or "\0" in name:
        raise InputError(f"{where!r}: expected the name of a model, a hub id ORG/NAME, a folder or {DEMO}")
    return name


def _listed(file: Path, common: Mapping[str, Any]) -> list[Asked]:
    """The models of a list. Options that a line gives win over those for all models."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise InputError(f"--list {file} cannot be read ({reason}): expected a text with one model per line") from error
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{file}, line {number}"
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise InputError(f"{where}: {error}; close it, or leave it out") from error
        if words:
            found.append(Asked(_checked(words[0], f"{where}: {words[0]}"), {**common, **_options(words, where)}))
    return found


def _options(words: Sequence[str], where: str) -> dict[str, Any]:
    """The options of a line, read as `fmprobe probe` reads them."""
    from fmprobe.probes.prototypes import check_choices

    try:
        context = _probe().make_context("probe", list(words))
    except Exception as error:
        if not hasattr(error, "format_message"):  # which click's errors have; typer does not export their class
            raise
        said = " ".join(str(error.format_message()).split())  # type: ignore[attr-defined]
        raise InputError(f"{where}: {said} Expected a model, and options of `fmprobe probe` for it alone") from error
    given = {key: context.params[key] for key in context.params if key in o.given(context) - {"model"}}
    if own := [key for key in OWN if key in given]:
        raise InputError(f"{where}: --{own[0]} belongs to the atlas, not to one model: leave it out there")
    check_choices(given)
    return given


@cache
def _probe() -> Any:
    """The command `probe` as click sees it."""
    from fmprobe.probes.prototypes import probe

    alone = typer.Typer(add_completion=False)
    alone.command(add_help_option=False)(probe)
    return typer.main.get_command(alone)
