"""What every command has: what it prints, a compact table, JSON alone (--json) or nothing (--quiet), and --config."""

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from fmprobe.errors import InputError
from fmprobe.runs import options as o
from fmprobe.runs.config import Config, configured
from fmprobe.sharing import is_main

Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the results as JSON alone; messages go to stderr.", rich_help_panel=o.Panel.OUTPUT
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print no messages and no table.", rich_help_panel=o.Panel.OUTPUT)
]


Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="LIST",
        help="Write every figure to the folder figures of the run, as pdf, svg, png or several, as in pdf,svg.",
        rich_help_panel=o.Panel.OUTPUT,
    ),
]
Dpi = Annotated[
    int | None,
    typer.Option(
        min=30,
        max=1200,
        metavar="N",
        help="Dots an inch of these figures. [default: 200]",
        rich_help_panel=o.Panel.OUTPUT,
    ),
]


def with_output(command: Callable[..., Any], draws: bool = False) -> Callable[..., None]:
    """A command with the options --json and --quiet, and with --config where it has options of its own.

    It returns what --json prints: the folder of a run, whose results.json that is, or the content itself. A command
    that `draws` returns the folder of a run, and has the options --format and --dpi as well.
    """
    own = inspect.signature(command)

    @functools.wraps(command)
    def run(
        context: typer.Context, *, as_json: bool, quiet: bool, config: Path | None = None, **arguments: Any
    ) -> None:
        arguments.pop("config", None)  # its callback has read it
        figures = _figures(arguments.pop("formats", None), arguments.pop("dpi", None)) if draws else None
        _refuse_empty(arguments)
        out = sys.stdout
        if quiet:
            os.environ["TQDM_DISABLE"] = "1"  # no progress, of other libraries neither
        with ExitStack() as stack:
            elsewhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8")) if quiet else sys.stderr
            stack.enter_context(redirect_stdout(elsewhere if quiet or as_json else out))
            stack.enter_context(configured(context))
            found = command(**arguments, **({"context": context} if "context" in own.parameters else {}))
            if figures is not None and is_main():
                from fmprobe.report.figures import write_figures

                files = write_figures(found, **figures)
                typer.echo(f"figures     {found / 'figures'}, {len(files)} files")
        if as_json and is_main():
            from fmprobe.files import finite

            print(json.dumps(finite(_content(found))[0], indent=2, allow_nan=False, default=str), file=out)

    kept = [parameter for name, parameter in own.parameters.items() if name != "context"]
    added = ({"config": (Config, None)} if kept else {}) | {"as_json": (Json, False), "quiet": (Quiet, False)}
    added |= {"formats": (Format, None), "dpi": (Dpi, None)} if draws else {}
    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *kept,
        *(inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=a) for n, (a, d) in added.items()),
    ]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _figures(formats: str | None, dpi: int | None) -> dict[str, Any] | None:
    """How figures are written; None where nobody asked. Raises InputError for a format that is unknown."""
    if formats is None:
        if dpi is not None:
            raise InputError("--dpi is of figures that --format asks for: give both, or leave it out")
        return None
    from fmprobe.report.figures import DPI, formats_of

    return {"formats": formats_of(formats), "dpi": dpi or DPI}


def _refuse_empty(arguments: Mapping[str, Any]) -> None:
    """Raise InputError for an option with an empty text, which the code behind it may take for "not given"."""
    for name, value in arguments.items():
        if value == "" and not name.startswith("model"):  # an argument, which is refused where it is read
            raise InputError(f"--{name.replace('_', '-')} is empty: give it a value, or leave it out")


def _content(found: Any) -> Any:
    from fmprobe.files import RESULTS, read_json

    return {"folder": str(found), **read_json(found / RESULTS)} if isinstance(found, Path) else found
