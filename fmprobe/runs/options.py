"""Options that several commands share."""

import functools
import inspect
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fmprobe.errors import InputError


def finite(value: float | None) -> float | None:
    """Callback of options that take a number: nan would lie in every range, and JSON has no infinity."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number: give a finite one.")
    return value


def seed(value: int) -> int:
    """Callback of --seed: what a generator of torch takes."""
    if value >= 2**63:
        raise typer.BadParameter(f"{value} is too large: give a seed below 2**63.")
    return value


def folder(text: str) -> Path:
    """The type of --out. Typer's own type would take an empty name for the working folder."""
    if not text or "\0" in text:
        raise typer.BadParameter("the name of a folder must not be empty or hold a null character.")
    try:
        os.fsencode(text).decode("utf-8")
    except ValueError as error:
        raise typer.BadParameter("the name of a folder must be valid UTF-8, as safetensors needs it.") from error
    return Path(text)


class Panel:
    """The groups of options in --help; commands have groups of their own beside them."""

    IMAGES, COMPARISON, DETECTOR = "Images", "Comparison", "Detector"
    SEARCH, DECODER, MODEL, OUTPUT = LAST = ("Orbits and attractors", "Decoder", "Model", "Run and output")


Model = Annotated[
    str, typer.Argument(help="Hub id (ORG/NAME, or timm/NAME) or local folder in Hugging Face layout.", metavar="MODEL")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        parser=folder,
        metavar="PATH",
        help="Folder for the results. [default: in runs/, named by model and command]",
        rich_help_panel=Panel.OUTPUT,
    ),
]
Starts = Annotated[
    int | None,
    typer.Option(
        "--starts",
        "-n",
        min=1,
        help="Number of starts drawn from N(0, I). [default: by device]",
        metavar="N",
        rich_help_panel=Panel.SEARCH,
    ),
]
MaxSteps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Largest number of steps of an orbit. [default: 500, fewer on a slow CPU]",
        metavar="N",
        rich_help_panel=Panel.SEARCH,
    ),
]
Tol = Annotated[
    float | None,
    typer.Option(
        min=0,
        callback=finite,
        help="Step size below which an orbit has converged. [default: 1e-5]",
        metavar="X",
        rich_help_panel=Panel.SEARCH,
    ),
]
Measure = Annotated[
    str | None,
    typer.Option(
        help="How the step size is measured against --tol: squared, relative or rms. [default: squared]",
        metavar="NAME",
        rich_help_panel=Panel.SEARCH,
    ),
]
Merge = Annotated[
    str | None,
    typer.Option(
        help="Distance by which two end points count as one attractor: relative or cosine. [default: relative]",
        metavar="NAME",
        rich_help_panel=Panel.SEARCH,
    ),
]
MergeThreshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        callback=finite,
        help="Distance below which two end points count as one attractor. [default: 0.01]",
        metavar="X",
        rich_help_panel=Panel.SEARCH,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of latents iterated together. [default: by device]",
        metavar="N",
        rich_help_panel=Panel.SEARCH,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Device to compute on: auto, cpu, cuda, cuda:N or mps.", metavar="NAME", rich_help_panel=Panel.MODEL
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Precision of the weights: float32, float16 or bfloat16. [default: float32]",
        metavar="NAME",
        rich_help_panel=Panel.MODEL,
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="auto: spread a model that is too large for one device. [default: none]",
        metavar="NAME",
        rich_help_panel=Panel.MODEL,
    ),
]
Autocast = Annotated[
    str | None,
    typer.Option(
        help="Precision of f alone: bfloat16 or float16. Latents stay in float32.",
        metavar="DTYPE",
        rich_help_panel=Panel.MODEL,
    ),
]
Compile = Annotated[
    str | None,
    typer.Option(
        help="Backend of torch.compile for f, such as inductor.", metavar="BACKEND", rich_help_panel=Panel.MODEL
    ),
]
Polish = Annotated[
    str | None,
    typer.Option(
        help="anderson: take attractors to the rounding floor of f.", metavar="NAME", rich_help_panel=Panel.SEARCH
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="Give bit-identical results for any batch size (slower).", rich_help_panel=Panel.MODEL
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Print every event of events.jsonl as it happens.", rich_help_panel=Panel.OUTPUT
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        callback=seed,
        help="Random seed for the noise starts and for fitting a surrogate decoder.",
        metavar="N",
        rich_help_panel=Panel.OUTPUT,
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub id.", metavar="REVISION", rich_help_panel=Panel.MODEL)
]
Decoder = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub id of a surrogate decoder that fit-decoder made; or published, the decoder that was "
        "published for the encoder (the default of probe on an accelerator).",
        metavar="NAME",
        rich_help_panel=Panel.DECODER,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Image side in pixels. [default: the processor's; on a CPU 112]",
        metavar="PIXELS",
        rich_help_panel=Panel.MODEL,
    ),
]
Tokens = Annotated[
    str | None,
    typer.Option(
        help="Tokens that make up z: patch, cls, pooled or all. [default: the family's]",
        metavar="NAME",
        rich_help_panel=Panel.MODEL,
    ),
]
UseEnds = Annotated[
    bool,
    typer.Option(
        "--use-ends",
        help="Use the latents after the last step, converged or not, instead of attractors.",
        rich_help_panel=Panel.SEARCH,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume", help="Continue the run in the folder, or start it anew.", rich_help_panel=Panel.OUTPUT
    ),
]

MEASURES, MERGES = ("squared", "relative", "rms"), ("relative", "cosine")  # choices of --measure and --merge

Group = dict[str, tuple[Any, Any]]  # annotation and default of each option by its key

# Where the results of a run go, whether it continues one that is there, and the seed of what it draws.
RUN: Group = {
    "out": (Out, None),
    "seed": (Seed, 0),
    "resume": (Resume, True),
    "verbose": (Verbose, False),
}
# How a model is loaded and evaluated, as `fmprobe.load` takes it.
LOAD: Group = {
    "decoder": (Decoder, None),
    "device": (Device, "auto"),
    "image_size": (ImageSize, None),
    "tokens": (Tokens, None),
    "revision": (Revision, None),
    "dtype": (Dtype, None),
    "autocast": (Autocast, None),
    "compile": (Compile, None),
    "deterministic": (Deterministic, False),
    "device_map": (DeviceMap, None),
}
# How orbits are iterated and attractors merged, as `make_plan` takes it.
ORBITS: Group = {
    "max_steps": (MaxSteps, None),
    "tol": (Tol, None),
    "measure": (Measure, None),
    "batch_size": (BatchSize, None),
}
MERGING: Group = {"merge": (Merge, None), "merge_threshold": (MergeThreshold, None)}
PLAN: Group = {"n": (Starts, None), **ORBITS, **MERGING, "polish": (Polish, None)}


def defaults(group: Group) -> dict[str, Any]:
    """The values of a group of options if none of them is given."""
    return {name: default for name, (_, default) in group.items()}


def given(context: typer.Context) -> set[str]:
    """The names of the parameters that somebody gave a value, rather than their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def without(group: Group, *names: str) -> Group:
    """The group without some of its options."""
    return {name: option for name, option in group.items() if name not in names}


def grouped(**groups: Group) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command that takes each of `groups` as one dict; on the command line they are separate options."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**arguments: Any) -> Any:
            gathered = {name: {key: arguments.pop(key) for key in group} for name, group in groups.items()}
            return command(**arguments, **gathered)

        own = inspect.signature(command)
        kept = [parameter for name, parameter in own.parameters.items() if name not in groups]
        options = {key: option for group in groups.values() for key, option in group.items()}
        added = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for key, (annotation, default) in options.items()
        ]
        run.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*kept, *added)} | {"return": own.return_annotation}
        return run

    return decorate


def check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    """Check that an option has one of its choices.

    Raises:
        InputError: it has not.
    """
    if value is not None and value not in choices:
        raise InputError(f"--{name} {value!r} is unknown: expected one of {', '.join(choices)}")
