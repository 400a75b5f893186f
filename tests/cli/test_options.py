"""Every option of every command is used or refused: generated from the app, not from a list."""

import re

import pytest
import torch
from support.commands import COMMANDS, OUTPUT, SHAPE, Observed, options_of, save_sources, spelled, stub, types_of

import fmprobe

# Each command with what it cannot do without, and again where an option can lose its object. D, E: images.
CONTEXTS = [
    "demo",
    "probe m",
    "prototypes m",
    "weights m --data D",
    "weights m --data D --no-null",
    "memorization m --data D",
    "field m",
    "convergence m",
    "capacity m",
    "contraction m",
    "residuals m",
    "residuals m --data D",
    "compare m k --data D",
    "compare m k --data D --no-ceiling --no-null",
    "compare m k --data D --map linear",
    "ood m --data D --ood x=E",
    "ood m --data D",
    "ood --detector DETECTOR --data D",
    "score DETECTOR --data D",
    "fit-decoder m --kind pixel",
    "fit-decoder m --kind latent",
    "fit-decoder m --kind linear",
    "fit-decoder m --kind closed-form",
]
# Noticed by the content of what is kept beside the run; and, of scores, the same on any device and written every time.
BESIDE = {
    "weights": ("data", "atoms", "images", "use_ends", "null"),
    "memorization": ("data", "test", "images", "use_ends"),
    "field": ("resolution", "basins"),
    "score": ("device", "parquet"),
}
# The options that each has of its own, which tests of the command try one by one.
WITHOUT_COMPUTATION: dict[str, set[str]] = {
    "atlas": set(options_of("probe")) - OUTPUT - {"revision", "decoder"} | {"names", "data", "ood", "images"},
    "cache": {"remove", "max_size"},
    "push": {"private", "license"},
    "models": set(),
    "report": set(),
}
GIVEN = {  # a value by name, where one of its type alone would not do
    "data": "E",
    "test": "E",
    "ood": "y=D",
    "atoms": "2,3",
    "maps": "linear",
    "measure": "rms",
    "merge": "cosine",
    "polish": "anderson",
    "distance": "cosine",
    "aggregate": "max",
    "kind": "latent",
    "surrogate": "closed-form",
    "acceptance": "0.5",
    "rule": "first",
    "images": "70",
    "steps": "2",
    "pixel_decoder": "D",
    "detector": "DETECTOR",
}


def options(context):
    """The options, by name, that decide something and that the context does not fix."""
    command, *given = context.split()
    deciding = {name: parameter for name, parameter in options_of(command).items() if name not in OUTPUT}
    return {n: p for n, p in deciding.items() if not {*p.opts, *p.secondary_opts} & set(given)}


CASES = [(context, name) for context in CONTEXTS for name in options(context)]


def another_value(context, name):
    """The option with another value than its default, as the command line spells it."""
    command, parameter = context.split()[0], options(context)[name]
    types = types_of(command, name)
    if bool in types:
        return [parameter.secondary_opts[0] if parameter.default is True else spelled(parameter)]
    value = GIVEN.get(name, "65" if int in types else "0.125" if float in types else "other")
    return [spelled(parameter), value]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    detector = fmprobe.TrajectoryDetector(stub(), max_steps=20)
    images = torch.rand(48, *SHAPE, generator=torch.Generator().manual_seed(0))
    detector.fit(images[:32], held_out=images[32:], progress=False).save(folder / "detector")
    return {**save_sources(folder), "DETECTOR": str(folder / "detector")}


def observe(arguments, out, places):
    def placed(argument):
        return re.sub(r"^(\w=)?(D|E|DETECTOR)$", lambda m: (m[1] or "") + places[m[2]], argument)

    return Observed([placed(argument) for argument in arguments], out)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, places):
    """What each context gives the computation with nothing else said."""
    found = {c: observe(c.split(), tmp_path_factory.mktemp("base") / "run", places) for c in CONTEXTS}
    assert not [context for context, base in found.items() if base.refused or not base.calls]
    return found


def test_every_command_has_a_context():
    assert {context.split()[0] for context in CONTEXTS} | set(WITHOUT_COMPUTATION) == set(COMMANDS)
    assert all(set(options_of(name)) - OUTPUT == own for name, own in WITHOUT_COMPUTATION.items())


@pytest.mark.parametrize(("context", "name"), CASES, ids=lambda value: value.replace(" ", "_"))
def test_an_option_reaches_the_computation_or_is_refused(context, name, bases, places, tmp_path):
    given = [*context.split(), *another_value(context, name)]
    found, base = observe(given, tmp_path / "run", places), bases[context]
    if found.refused:
        return
    assert found.given != base.given, f"{' '.join(given)} is accepted and changes nothing"
    work = "score" if "DETECTOR" in context else context.split()[0]
    if found.manifest and name not in BESIDE.get(work, ()):
        assert found.manifest != base.manifest, f"{' '.join(given)} is not noticed by a run that goes on"


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda context: context.replace(" ", "_"))
def test_an_empty_value_is_refused(context, places, tmp_path):
    for name, parameter in options(context).items():
        if types_of(context.split()[0], name) & {str, list[str]}:
            found = observe([*context.split(), spelled(parameter), ""], tmp_path / name, places)
            assert found.refused, f"{spelled(parameter)} '' is accepted"
