"""The configuration of a command: a YAML file gives it (--config), and each run folder holds it as `config.yaml`."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from fmprobe import __version__
from fmprobe.errors import InputError
from fmprobe.files import write_atomically
from fmprobe.runs import options as o

FILE = "config.yaml"
# They decide nothing that is computed: where it goes, what is shown, and whether what is there is taken.
OUTPUT = ("out", "config", "resume", "verbose", "as_json", "quiet", "formats", "dpi")

_current: ContextVar[dict[str, Any] | None] = ContextVar("configuration of the command that runs", default=None)


class _Texts(yaml.BaseLoader):
    """Every value is the text that the file holds, as on a command line, so that a revision 0123 keeps its zero."""


_NULL = "tag:yaml.org,2002:null"
_Texts.add_implicit_resolver(_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Texts.add_constructor(_NULL, lambda *_: None)


def read(context: typer.Context, file: Path | None) -> Path | None:
    """Callback of --config: what the file says takes the place of the defaults, and what a flag says comes before it.

    A value that is the default counts as not given, so that the `config.yaml` of a run can be given back.

    Raises:
        InputError: the file is no such mapping, or a key or a value is not one of this command's.
    """
    if file is None:
        return None
    found, own, given = _mapping(file), _by_key(context), {}
    name = context.info_name
    if (command := found.pop("command", name)) != name:
        raise InputError(f"{file}: 'command' is {command!r}: expected {name}, or a file without this key")
    for key, said in found.items():
        parameter = own.get(key.replace("_", "-"))
        if parameter is None:
            expected = ", ".join(dict.fromkeys(spelled(p) for p in own.values()))
            raise InputError(f"{file}: {key!r} is no option of fmprobe {name}: expected one of {expected}")
        if parameter.name in given:
            raise InputError(f"{file}: {key!r} is given twice: expected one of {spelled(parameter)}, {parameter.name}")
        given[parameter.name] = _checked(context, parameter, said, f"{file}: {key!r}")
    context.default_map = {key: value for key, value in given.items() if value is not None}
    return file


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=read,
        help="YAML file of options by their long names, such as the config.yaml of a run. Flags win over it.",
        rich_help_panel=o.Panel.OUTPUT,
    ),
]


@contextmanager
def configured(context: typer.Context) -> Iterator[None]:
    """A part in which `keep` writes the options of this command."""
    token = _current.set({"command": context.info_name, **_resolved(context)})
    try:
        yield
    finally:
        _current.reset(token)


def keep(folder: Path) -> None:
    """Write the configuration of the command that runs to `config.yaml`; nothing where no command does.

    Raises:
        WriteError: the disk is full.
    """
    if (current := _current.get()) is None:
        return
    said = f"# fmprobe {__version__}: options as they were asked; null leaves a choice to the model and the device\n"
    text = said + yaml.safe_dump(current, sort_keys=False, allow_unicode=True, width=float("inf"))
    path = folder / FILE
    if not path.is_file() or path.read_bytes() != text.encode():
        write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def spelled(parameter: Any) -> str:
    """An option or argument of click's by its long name."""
    return max(parameter.opts, key=len).lstrip("-").replace("_", "-")


def _by_key(context: typer.Context) -> dict[str, Any]:
    """The options and arguments of a command by their long names, and by the names of their parameters."""
    own = [p for p in context.command.params if p.name not in ("config", "help")]
    return {p.name.replace("_", "-"): p for p in own} | {spelled(p): p for p in own}


def _resolved(context: typer.Context) -> dict[str, Any]:
    """What each option that decides something is, given or by default, as YAML holds it."""
    deciding = [p for p in context.command.params if p.name in context.params and p.name not in OUTPUT]
    return {spelled(p): _plain(context.params[p.name]) for p in deciding}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _mapping(file: Path) -> dict[str, Any]:
    """The content of a YAML file by key."""
    try:
        found = yaml.load(file.read_bytes(), _Texts)
    except OSError as error:
        raise InputError(f"--config {file} cannot be read ({error.strerror or error}): name a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"--config {file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, Mapping):
        raise InputError(f"--config {file} holds no mapping: expected a line `option: value` for each option")
    return {"null" if key is None else key: value for key, value in found.items()}  # of `null: false`, as --no-null


def _checked(context: typer.Context, parameter: Any, said: Any, where: str) -> Any:
    """What the file says as the command line would say it; None where it says nothing but the default."""
    many = getattr(parameter, "multiple", False) or parameter.nargs == -1
    texts = [said] if many and isinstance(said, str) else said
    if texts is None or texts == []:
        return None
    if many and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise InputError(f"{where} is {said!r}: expected a value, or a list of values")
    if not many and not isinstance(texts, str):
        raise InputError(f"{where} is {said!r}: expected one value")
    try:
        value = parameter.process_value(context, texts)
    except typer.BadParameter as error:
        raise InputError(f"{where} is {said!r}: {error.message}") from error
    return None if value == parameter.default else texts
