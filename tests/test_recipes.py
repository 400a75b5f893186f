"""Every recipe runs at its smallest setting, and every flag that the texts name exists."""

import argparse
import ast
import math
import re
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from _claims import CLAIMS, RUNS

from fmprobe.cli import app

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("[!_]*.py"))
SHARED = "\n".join((ROOT / "recipes" / f"{name}.py").read_text() for name in ("_shared", "_figures"))

# The smallest command of every recipe, and a line that it must print. IMAGES: 32 pictures of noise, 32 pixels a side.
SMALLEST: dict[str, tuple[str, str]] = {
    "alignment": (
        "--ks 2 --images 32 --test 24 --width 2 --steps 2 --max-steps 5",
        r"attractors +\d+ and \d+",
    ),
    "contraction": ("--backbones resnet18 --inputs 4 --side 32 --seeds 1", r"resnet18"),
    "gpu_suite": ("--part 9 --small", r"part 9: done"),
    "residual_curves": ("--starts 2 --steps 3", r"latent norm +\d"),
    "vector_field": ("--seeds 0 --images 32 --steps 2 --frames 2 --resolution 3", r"pictures and animations"),
    "benchmark_engine": (
        "--epochs 1 --images 32 -n 4 --width 2 --overhead-steps 0 --repeats 1",
        r"same ends: \d+ of \d+",
    ),
    "benchmark_detector": (
        "--images 2 --fit 12 --steps 2 --repeats 1",
        r"\| trajectory \| [\d.]+ \| [\d.]+ \| [\d.]+ \|\n(.*\n)*loading the model takes [\d.]+ s",
    ),
    "benchmark_memory": ("-n 64 --dimension 32 --patterns 4", r"4 attractors of 4 patterns"),
    "benchmark_processes": ("-n 8 --batch-size 2", r"ratio of wall-clock seconds [\d.]+"),
    "benchmark_sources": ("-n 2 3 --parts encode", r"encode: -?\d+ bytes an image of its own"),
    "simulate_processes": (
        "-n 64 --workers 2 4 --measured 8 --batch-size 2 --share 8 --no-check",
        r"\| 4 \| .*\n(.*\n)*efficiency below 50%: .*\n(.*\n)*\| frugal, guided \|",
    ),
    "benchmark_omp": (
        "--atoms 32 --dim 16 --select 4 --targets 4 --large 8 --sklearn-targets 2 --rounds 1",
        r"finite: True; an atom twice: False",
    ),
    "benchmark_training": (
        "--networks 2 --width 2 --images 20 --epochs 1 --rounds 1",
        r"one after the other .*\nat once, fmprobe \(vmap\) .* of a loss [\d.e+-]+\nat once, grouped",
    ),
    "evidence": ("--list", r"python recipes/memorization\.py .*\n.*reduced: python"),
    "capacity": ("--images 40 --ks 4 --starts 2 --max-steps 5", r"4, images A .* of 2"),
    "convergence": ("--images 16 --steps 2 --starts 4", r"\| train \| \d+ \| spectral radius \|"),
    "memorization": (
        "--ks 2 --images 16 --steps 2 --starts 4 --max-steps 5 --width 2",
        r"\| digits \| 2 \| 16 \| .* \| noise \|",
    ),
    "noise_meets_training": (
        "--changes width --starts 4 --images 16 --steps 1 --max-steps 5",
        r"\| width 16 \| 1 \|",
    ),
    "training_dynamics": (
        "--k 2 --images 16 --steps 2 --starts 4 --max-steps 5 --width 2",
        r"digits: 3 records of 4 starts a kind",
    ),
    "ood_detection": ("--images 128 --steps 2", r"trajectory +[*\d]"),
    "surrogate_choice": (
        "--candidates ridge bottleneck --images 20 --k 2 --seeds 1 --threads 1 --starts 2 --max-steps 2 --null none"
        " --photos IMAGES",
        r"\| ridge \| 2 \| -?\d+% \| -?\d+% \| .*\n(.*\n)*chosen by the rule: none",
    ),
    "surrogates": ("--images 32 --steps 2 --starts 2 --max-steps 2", r"latent topk .* of 2, 0 attractors"),
    "train_demo_model": ("--steps 1 --per-class 1 --batch-size 8", r"model in vit-mae-digits"),
    "train_small_mae": ("--data IMAGES --steps 2 --width 16 --layers 1", r"model in vit-mae-small, \d"),
    "weight_probing": ("--starts 8 --images 4 --atoms 1 2", r"image MSE of 4 images"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images") / "noise.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8))
    return path


def test_every_recipe_has_a_smallest_command():
    assert sorted(SMALLEST) == [path.stem for path in RECIPES]


@pytest.mark.usefixtures("draws")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_at_its_smallest(path, images, tmp_path, monkeypatch, capfd):
    """In this process, which has paid for the imports already."""
    arguments, expected = SMALLEST[path.stem]
    monkeypatch.setattr(sys, "argv", [str(path), *arguments.replace("IMAGES", str(images)).split()])
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.chdir(tmp_path)
    recipe = runpy.run_path(str(path), run_name="__main__")
    assert re.search(expected, capfd.readouterr().out)
    if "evidence" in recipe:
        check_evidence(path.stem, recipe["evidence"](Path("runs", path.stem)))


def check_evidence(recipe: str, rows: list[dict[str, Any]]) -> None:
    """The figures of a run hold every column that its tables and the rules of its claims name."""
    assert rows or recipe == "train_demo_model"  # its smallest command trains, and `--examine` gives the figures
    for name, run in RUNS.items():
        if run.recipe == recipe and rows:
            assert {"seed", *run.by, *run.shown, run.split or "seed"} <= rows[0].keys()
            rules = [claim.rule for claim in CLAIMS.values() if claim.run == name]
            named = [getattr(rule, key, None) for rule in rules for key in ("x", "y", "column", "by", "unit")]
            assert {column for column in named if column} <= rows[0].keys()


def test_every_recipe_that_draws_takes_a_format_and_no_other_does():
    for path in RECIPES:
        source = path.read_text()
        assert ("from _figures import" in source and "save(" in source) == ("--format" in _with_shared(source)), path
        assert ".savefig(" not in source or path.stem in ("benchmark_omp", "train_demo_model")  # --picture FILE


def test_a_figure_of_a_recipe_is_written_in_the_formats_asked_for(tmp_path, monkeypatch):
    path = ROOT / "recipes" / "contraction.py"
    arguments = ["--probe", "--format", "pdf,svg", "--dpi", "50", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.syspath_prepend(str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
    found = sorted(file.name for file in tmp_path.glob("*.*") if file.suffix in (".pdf", ".svg", ".png"))
    names = ("contraction-random-weights", "contraction-trained")
    assert found == [f"{name}.{kind}" for name in names for kind in ("pdf", "svg")]


@pytest.mark.parametrize(("patience", "run"), [(1, 3), (2, 6), (3, 6), (None, 6)])
def test_a_training_ends_when_the_validation_error_has_not_fallen_for_a_while(patience, run, monkeypatch):
    """The errors are those of epochs 0 to 6; the weights stand for the epoch that they were left in."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    shared = runpy.run_path(str(ROOT / "recipes" / "_shared.py"))
    errors = [5.0, 4.0, 3.0, 3.5, 2.0, math.nan, 2.5]
    image = torch.zeros(1, 1, 1, 1)
    network: Any = torch.nn.Conv2d(1, 1, 1)

    def train(network, images, arguments, *, epochs, seed, callback=lambda epoch, model: None):
        for epoch in range(epochs + 1):
            torch.nn.init.constant_(network.bias, math.sqrt(errors[epoch]))  # its error on a black image
            callback(epoch, network)

    train_until = shared["train_until"]
    monkeypatch.setitem(train_until.__globals__, "train", train)
    arguments = argparse.Namespace(patience=patience)
    found = train_until(network, image, image, arguments, epochs=6, seed=0)
    best = 6 if patience is None else errors.index(min(errors[: run + 1]))
    assert found == {"best": best, "run": run}
    assert float(network.bias.detach() ** 2) == pytest.approx(errors[best])


def rows(**candidates: dict[str, Any]) -> dict[str, dict[str, Any]]:
    usual = {"failed": 0, "fits": 7, "separation": 5.0, "seconds": 60.0, "below_median": 0.2}
    return {name: {**usual, **changes} for name, changes in candidates.items()}


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        (rows(a={}, b={"separation": 9.0, "seconds": 600.0}), "b"),
        (rows(a={}, b={"separation": 9.0, "failed": 1}), "a"),
        (rows(a={"separation": 8.5}, b={"separation": 9.0, "seconds": 61.0}), "a"),
        (rows(a={"separation": None}, b={"separation": 0.1}), "b"),
        (rows(a={"failed": 2}, b={"failed": 7, "separation": 9.0}), None),
        (rows(a={"separation": None}, b={"failed": 1}), None),
    ],
)
def test_the_rule_that_chooses_a_surrogate_is_the_one_that_its_recipe_states(candidates, chosen, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    rule = runpy.run_path(str(ROOT / "recipes" / "surrogate_choice.py"))
    assert rule["choose"](candidates)[0] == chosen
    none = rule["kept"](torch.zeros(0, 12))
    fit = {"null": False, "below_median": 0.2, "photos": None, "feature_error": 1.0, "pictures": none}
    fit |= {"settled": 0.0, "attractors": 0, "regime": "chaotic", "exponent": 0.3, "seconds": 1.0, "megabytes": 1.0}
    row = rule["row_of"]([fit, {**fit, "exponent": 0.1}, {**fit, "null": True, "exponent": 0.0, "below_median": 0.0}])
    assert (row["fits"], row["failed"], row["separation"]) == (2, 0, pytest.approx(2))
    assert rule["row_of"]([fit, {**fit, "below_median": 0.14}, {**fit, "regime": "settled"}])["failed"] == 2
    assert row["matched"] == (0, 0)


def test_attractors_of_two_fits_match_one_to_one_by_their_pictures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    rule = runpy.run_path(str(ROOT / "recipes" / "surrogate_choice.py"))
    pictures = torch.rand(3, 48, generator=torch.Generator().manual_seed(0))
    fits = [{"pictures": rule["kept"](p)} for p in (pictures, pictures[[2, 0]] * 1.001, pictures[[1, 1, 1]], pictures)]
    assert rule["matched"](fits) == (2 + 1 + 3, 9)
    assert rule["matched"]([fits[0], {"pictures": rule["kept"](pictures * 1.1)}]) == (0, 3)


# Of other programs that the texts name.
OTHERS = {"--nproc_per_node", "--num_processes", "--multi_gpu"}  # of torchrun and accelerate launch, as what follows
OTHERS |= {"--nnodes", "--node_rank", "--master_addr", "--master_port"}
OTHERS |= {"--num_machines", "--machine_rank", "--main_process_ip", "--main_process_port"}


def _flags(parameters: Iterable[Any]) -> set[str]:
    return {"--help"}.union(*((*parameter.opts, *parameter.secondary_opts) for parameter in parameters))


def _with_shared(source: str) -> str:
    """A recipe's text with those functions of what recipes share that it imports, and those that these call."""
    imported = re.findall(r"^from _(?:shared|figures) import (.+)$", source, re.MULTILINE)
    names = {name for line in imported for name in line.split(", ")}
    names |= {"add_figure_options"} if "parser_of" in names else set()
    names |= {"add_seeds"} if "add_protocol" in names else set()
    functions = [node for node in ast.parse(SHARED).body if isinstance(node, ast.FunctionDef) and node.name in names]
    return "\n".join([source, *(ast.get_source_segment(SHARED, node) or "" for node in functions)])


def _known() -> dict[str, set[str]]:
    """Flags by what precedes them: `fmprobe COMMAND`, or the path of a recipe."""
    group: Any = typer.main.get_command(app)
    known = {f"fmprobe {name}": _flags(command.params) for name, command in group.commands.items()}
    for path in RECIPES:
        source = _with_shared(path.read_text())
        names = re.findall(r'add_argument\(\s*(?:"-\w", )?"(--[\w-]+)"', source)
        names += [f"--{name}" for name in re.findall(r'\("(\w+)", \d+\)', source)]  # those added in a loop
        for listed in re.findall(r"for name in \(([^)]*)\):\n +parser\.add_argument", source):
            names += [f"--{name.replace('_', '-')}" for name in re.findall(r'"(\w+)"', listed)]
        known[f"recipes/{path.name}"] = {"--help", *names}
    return known


def unknown_flags(text: str) -> list[str]:
    """Flags of a text that do not exist where its line says: there, or anywhere if the line names no command."""
    known = _known()
    every = OTHERS.union(*known.values())
    found = []
    for line in re.sub(r"\n {6,}(?=--)", " ", text).splitlines():  # a command may go on in the next line
        named = re.search("|".join(rf"{re.escape(name)}(?![\w-])" for name in known), line)
        allowed = known[named[0]] | OTHERS if named else every
        found += [
            f"{flag}: {line.strip()}" for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", line) if flag not in allowed
        ]
    return found


def ood_run(auroc, shift=0.0):
    """What `fmprobe ood` finds of three sets, by the AUROC of each score on each."""
    sets = ("a", "b", "c")
    groups = {"features": "profile", "joined": "profile", "trajectory": "trajectory", "first": "part"}

    def measured(value):
        ends = [value / 100 - 0.1 - shift, min(1.0, value / 100 + 0.1 + shift)]
        return {"auroc": value / 100, "intervals": {"auroc": ends}}

    return {
        "sets": {"in-distribution": {"accepted_share": 0.95}}
        | {name: {"range": "near" if name == "a" else "far", "accepted_share": 0.4} for name in sets},
        "scores": [
            {
                "name": name,
                "group": groups.get(name, "baseline"),
                "sets": dict(zip(sets, map(measured, of), strict=True)),
            }
            for name, of in auroc.items()
        ],
        "detector": {"decision": {"rule": "features"}},
    }


def test_the_score_that_is_shown_for_a_set_is_chosen_on_the_others(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "recipes")
    print_over_seeds = runpy.run_path(str(ROOT / "recipes" / "ood_detection.py"))["print_over_seeds"]
    auroc = {"features": (90, 80, 70), "joined": (60, 60, 60), "trajectory": (50, 50, 50), "first": (40, 40, 40)}
    alone = {"good on a": (99, 10, 10), "good on b and c": (20, 95, 91)}
    lower = {name: tuple(value - 2 for value in of) for name, of in (auroc | alone).items()}
    print_over_seeds([ood_run(auroc | alone), ood_run(lower, shift=0.05)])
    cells = [row.strip("| ").split(" | ") for row in capsys.readouterr().out.split("\n")]
    rows = {first: others for first, *others in cells}
    assert rows["score"] == ["a (near)", "b (far)", "c (far)", "near", "far", "all"]
    assert rows["features"] == ["89.0 (73 to 100)", "79.0 (63 to 93)", "69.0 (53 to 83)", "89.0", "74.0", "79.0"]
    # For a the best of b and c; for b and for c alike the other of them decides, beside a.
    assert rows["best single score on all other sets"] == ["19.0", "94.0", "90.0", "19.0", "92.0", "67.7"]
    assert rows["best single score on this set"] == ["98.0", "94.0", "90.0", "98.0", "92.0", "94.0"]


@pytest.mark.parametrize("name", ["README.md", "recipes/README.md", "recipes/evidence.md"])
def test_every_flag_that_the_texts_name_exists(name):
    text = (ROOT / name).read_text()
    assert unknown_flags(text) == []
    assert len(re.findall(r"(?<![\w-])--[a-z]", text)) > 10


def test_a_flag_that_does_not_exist_is_found():
    wrong = ["fmprobe probe M --ood X", "recipes/surrogates.py --atoms 3", "take `--frobnicate`"]
    assert [line.partition(":")[0] for line in unknown_flags("\n".join(wrong))] == ["--ood", "--atoms", "--frobnicate"]
    assert unknown_flags("fmprobe ood M --data A\n        --ood B  # or `--seed`") == []
