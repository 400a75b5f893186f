"""What a command prints: a compact table at its end, JSON alone under --json, nothing under --quiet."""

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
from fmprobe.sharing import is_main

Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON alone; messages go to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no messages and no table.")]


def with_output(command: Callable[..., Any]) -> Callable[..., None]:
    """A command with the options --json and --quiet.

    It returns what --json prints: the folder of a run, whose results.json that is, or the content itself.
    """

    @functools.wraps(command)
    def run(*, as_json: bool, quiet: bool, **arguments: Any) -> None:
        _refuse_empty(arguments)
        out = sys.stdout
        if quiet:
            os.environ["TQDM_DISABLE"] = "1"  # before anything imports it
        with ExitStack() as stack:
            elsewhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8")) if quiet else sys.stderr
            stack.enter_context(redirect_stdout(elsewhere if quiet or as_json else out))
            found = command(**arguments)
        if as_json and is_main():
            from fmprobe.files import finite

            print(json.dumps(finite(_content(found))[0], indent=2, allow_nan=False, default=str), file=out)

    own = inspect.signature(command)
    added = {"as_json": Json, "quiet": Quiet}
    parameters = [
        *own.parameters.values(),
        *(inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=a) for n, a in added.items()),
    ]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, **added}
    return run


def _refuse_empty(arguments: Mapping[str, Any]) -> None:
    """Raise InputError for an option with an empty text, which the code behind it may take for "not given"."""
    for name, value in arguments.items():
        if value == "" and not name.startswith("model"):  # an argument, which is refused where it is read
            raise InputError(f"--{name.replace('_', '-')} is empty: give it a value, or leave it out")


def _content(found: Any) -> Any:
    from fmprobe.files import RESULTS, read_json

    return {"folder": str(found), **read_json(found / RESULTS)} if isinstance(found, Path) else found
