"""What no command takes: each ends with 2 and a clear line that names the thing, no traceback, nothing half-written."""

import json
import re
import shlex
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from support.checkpoints import PATCH, SIDE, save_dinov2
from support.spoiled import RUNS, cut, edit, spoiled_checkpoints, spoiled_images
from support.surrogates import quick

import fmprobe
from fmprobe.cli import main

DEMO = str(files("fmprobe.demo") / "vit-mae-digits")
GOOD = "{images}/good.npz"

CHECKPOINTS = {
    "no-config": "holds no config.json",
    "config-cut": "cannot be read as JSON",
    "config-empty": "cannot be read as JSON",
    "config-list": "is not a JSON object",
    "config-binary": "cannot be read as JSON",
    "config-nested": "cannot be read as JSON",
    "no-type": "no adapter covers",
    "unknown-type": "did you mean vit_mae",
    "own-code": "never executes",
    "huge-width": "hidden_size = 1000000000000",
    "many-layers": "num_hidden_layers = 1000000",
    "negative-layers": "num_hidden_layers = -1",
    "no-patch": "no-patch",
    "odd-heads": "odd-heads",
    "other-width": "other-width",
    "text-for-a-number": "text-for-a-number",
    "weights-cut": "damaged",
    "weights-empty": "damaged",
    "weights-text": "damaged",
    "weights-long-header": "damaged",
    "weights-missing": "holds no weights",
    "weights-nan": "holds no finite number",
    "weights-fewer": "decoder",
    "pickle": "can execute code",
    "index-outside": "'../mae/model.safetensors'",
    "index-missing": "'model-00001-of-00002.safetensors'",
    "index-pickle": "'model.bin'",
    "index-empty": "lists none",
    "processor-cut": "processor-cut",
    "processor-list": "processor-list",
}

SOURCES = {
    "{images}/empty": "holds no images|gave no such|cannot be read",
    "{images}/one": "1 in-distribution images are too few",
    "{images}/text": "holds no images|cannot be read",
    "{images}/zero-size": "a.png cannot be read as an image",
    "{images}/cut": "a.png cannot be read as an image",
    "{images}/mislabelled": "a.png cannot be read as an image",
    "{images}/bomb": "a.png cannot be read as an image",
    "{images}/no-pixels": "a.png cannot be read as an image",
    "{images}/damaged-parquet": "damaged-parquet cannot be read",
    "{images}/damaged-parquet/a.parquet": "a.parquet cannot be read",
    "{images}/text/a.txt": "is no image source",
    "{images}/one/missing.png": "does not exist",
    "{images}/good.npz:nothing": "has no images 'nothing'",
    "{images}/flat.npz:x": "has shape",
    "{images}/five.npz:x": "has shape",
    "{images}/signed.npz:x": "expected uint8",
    "{images}/outside.npz:x": "expected uint8",
    "{images}/not-finite.npz:x": "expected uint8",
    "{images}/none.npz:x": "holds no images|holds 0 images",
    "{images}/objects.npz:x": "cannot be read as .npz",
    "{images}/text.npz": "cannot be read as .npz",
    "{images}/cut.npz": "cannot be read as .npz",
    "{images}/missing.npz": "does not exist",
    "{images}/missing": "no folder or file here",
    "no/such-data-set": "no folder or file here",
    "''": "is empty",
}

COMMANDS = {
    "probe": "[Mm]issing argument|MODEL",
    "probe ''": "neither a folder nor a hub id",
    "probe no/such-model": "no/such-model is not in the local cache",
    "probe a/b/c": "neither a folder nor a hub id",
    "probe /no/such/folder": "neither a folder nor a hub id",
    "probe no/such-model --revision v9": "no/such-model",
    "probe {demo} -n 0": "-n",
    "probe {demo} -n many": "'-n'",
    "probe {demo} -n 1e3": "'-n'",
    "probe {demo} --max-steps 0": "--max-steps",
    "probe {demo} --tol -1": "--tol",
    "probe {demo} --tol nan": "tol",
    "probe {demo} --measure metres": "squared, relative, rms",
    "probe {demo} --merge blend": "relative, cosine",
    "probe {demo} --batch-size -2": "--batch-size",
    "probe {demo} --seed -1": "--seed",
    "probe {demo} --seed 99999999999999999999999": "--seed",
    "probe {demo} --device abacus": "abacus",
    "probe {demo} --device cuda:99": "cuda:99",
    "probe {demo} --dtype int3": "float32, float16, bfloat16",
    "probe {demo} --image-size 0": "--image-size",
    "probe {demo} --image-size 13": "13",
    "probe {demo} --tokens heads": "heads",
    "probe {demo} --decoder {detector}": "detector",
    "probe {demo} --decoder /no/such/decoder": "/no/such/decoder",
    "probe {demo} --nonsense": "nonsense",
    "probe {encoder} --decoder {other_decoder}": "another encoder",
    "probe {encoder} --decoder {decoder_cut}": "decoder_cut|damaged|cannot",
    "probe {encoder} --decoder {decoder_edited}": "decoder_edited|config",
    "probe {demo} -o {images}/good.npz": "is a file",
    "probe {demo} -o {images}": "is no run folder",
    "probe {demo} -o /proc/nothing/here": "cannot write",
    "probe {demo} -o {run} -n 5 --max-steps 9": "holds another run",
    "probe {demo} -o {run_manifest_cut}": "cannot be read as JSON",
    "probe {demo} -o {run_results_cut} -n 4 --max-steps 20 --device cpu": "cannot be read as JSON",
    "weights {demo} --data {images}/good.npz --atoms none": "--atoms",
    "weights {demo} --data {images}/good.npz --atoms 0": "--atoms",
    "weights {demo} --data {images}/good.npz --images 0": "--images",
    "weights {demo}": "--data",
    "weights {demo} --data {images}/good.npz --images 9 -o {run_attractors_cut} -n 4 --max-steps 20 --device cpu": (
        "attractors.safetensors"
    ),
    "fit-decoder {encoder} -o {tmp}/d --kind pencil": "pencil",
    "fit-decoder {encoder} -o {tmp}/d --kind latent --variant odd": "odd",
    "fit-decoder {encoder} -o {tmp}/d --size vast": "vast",
    "fit-decoder {encoder} -o {tmp}/d --steps 0": "--steps",
    "fit-decoder {encoder} -o {tmp}/d --images 2": "--images",
    "fit-decoder {encoder} -o {tmp}/d --noise -1": "--noise",
    "fit-decoder {encoder} -o {tmp}/d --noise nan": "--noise",
    "fit-decoder {encoder} -o {tmp}/d --contraction inf": "--contraction",
    "fit-decoder {encoder} -o {tmp}/d --perceptual nan": "--perceptual",
    "ood {demo} --data {images}/good.npz --acceptance nan": "--acceptance",
    "fit-decoder {encoder} -o {tmp}/d --kind latent --bottleneck 0": "--bottleneck",
    "fit-decoder {encoder} -o {images}/good.npz": "is a file|good.npz",
    "fit-decoder {encoder} -o /proc/nothing/here": "cannot write the decoder",
    "fit-decoder {encoder} -o {tmp}/d --steps 1 --images 16 --trackers crystal-ball": "crystal-ball",
    "fit-decoder {encoder} -o {tmp}/d --data {images}/one": "16 images or more, got 1",
    "fit-decoder {demo} -o {tmp}/d --kind latent --pixel-decoder /no/such": "/no/such",
    "ood": "--data",
    "ood {demo}": "--data",
    "ood --data {images}/good.npz": "no model",
    "ood {demo} --data {images}/good.npz --acceptance 1.5": "--acceptance",
    "ood {demo} --data {images}/good.npz --images 3": "--images",
    "ood {demo} --data {images}/good.npz --distance miles": "euclidean, cosine, standardised",
    "ood {demo} --data {images}/good.npz --ood a=x --ood a=y": "the name 'a' is taken",
    "ood --detector /no/such/detector --data {images}/one": "/no/such/detector",
    "ood --detector {run} --data {images}/one": "detector",
    "ood --detector {detector_cut} --data {images}/one": "detector",
    "ood --detector {detector} --data {images}/one --rule favourite": "favourite",
    "ood {demo} --detector {detector} --data {images}/one": "knows its model",
    "models extra": "extra",
    "paint": "paint",
    "memorization": "[Mm]issing argument|MODEL",
    "memorization {demo}": "--data",
    "memorization no/such-model --data {images}/good.npz": "no/such-model is not in the local cache",
    "memorization {demo} --data {images}/good.npz --images 0": "--images",
    "memorization {demo} --data {images}/good.npz --images -5": "--images",
    "memorization {demo} --data {images}/good.npz --images 1e9": "--images",
    "memorization {demo} --data {images}/good.npz --tol nan": "tol",
    "memorization {demo} --data {images}/good.npz --tol inf": "--tol",
    "memorization {demo} --data {images}/good.npz --tol -1": "--tol",
    "memorization {demo} --data {images}/good.npz --max-steps -1": "--max-steps",
    "memorization {demo} --data {images}/good.npz --batch-size 0": "--batch-size",
    "memorization {demo} --data {images}/good.npz --measure metres": "squared, relative, rms",
    "memorization {demo} --data {images}/good.npz --merge blend": "relative, cosine",
    "memorization {demo} --data {images}/good.npz --seed -1": "--seed",
    "memorization {demo} --data {images}/good.npz --decoder {detector}": "detector",
    "memorization {encoder} --data {images}/good.npz --decoder {other_decoder}": "another encoder",
    "memorization {demo} --data {images}/good.npz -o {images}/good.npz": "is a file",
    "memorization {demo} --data {images}/good.npz -o {images}": "is no run folder",
    "memorization {demo} --data {images}/good.npz -o /proc/nothing/here": "cannot write",
    "memorization {demo} --data {images}/good.npz -o {run} -n 5": "holds another run",
    "memorization {demo} --data {images}/good.npz -o {run_manifest_cut} -n 4": "cannot be read as JSON",
    "memorization {same} -o {run} --data {images}/missing.npz": "does not exist",
    "memorization {same} -o {run} --data {images}/empty": "holds no images|gave no such|cannot be read",
    "memorization {same} -o {run} --data {images}/cut": "a.png cannot be read as an image",
    "memorization {same} -o {run} --data {images}/flat.npz:x": "has shape",
    "memorization {same} -o {run} --data {images}/outside.npz:x": "expected uint8",
    "memorization {same} -o {run} --data {images}/good.npz --test {images}/text": "holds no images|cannot be read",
    "memorization {same} -o {run} --data {images}/good.npz --test ''": "is empty",
    "memorization {same} -o {run_results_cut} --data {images}/good.npz": "cannot be read as JSON",
    "memorization {same} -o {run_attractors_cut} --data {images}/good.npz": "attractors.safetensors",
    "memorization {same} -o {run_attractors_gone} --data {images}/good.npz": "attractors.json does not exist",
    "memorization {same} -o {run_attractors_other} --data {images}/good.npz": "latents of shape",
    "compare": "[Mm]issing argument|'A'",
    "compare {demo}": "[Mm]issing argument|'B'",
    "compare {demo} {demo}": "--data",
    "compare {demo} no/such-model --data {images}/good.npz": "no/such-model is not in the local cache",
    "compare /no/such/folder {demo} --data {images}/good.npz": "/no/such/folder",
    "compare {demo} {checkpoints}/weights-cut --data {images}/good.npz": "damaged",
    "compare {demo} {demo} --data {images}/good.npz --images 11": "--images",
    "compare {demo} {demo} --data {images}/good.npz --images -96": "--images",
    "compare {demo} {demo} --data {images}/good.npz --anchors 1": "--anchors",
    "compare {demo} {demo} --data {images}/good.npz --noise -1": "--noise",
    "compare {demo} {demo} --data {images}/good.npz --noise nan": "--noise",
    "compare {demo} {demo} --data {images}/good.npz --noise inf": "--noise",
    "compare {demo} {demo} --data {images}/good.npz --map conformal": "orthogonal, linear, relative",
    "compare {demo} {demo} --data {images}/good.npz --measure metres": "squared, relative, rms",
    "compare {demo} {demo} --data {images}/good.npz --tol nan": "tol",
    "compare {demo} {demo} --data {images}/good.npz --tol inf": "no finite number",
    "compare {demo} {demo} --data {images}/good.npz --max-steps 0": "--max-steps",
    "compare {demo} {demo} --data {images}/good.npz --batch-size 0": "--batch-size",
    "compare {demo} {demo} --data {images}/good.npz --seed 1.5": "--seed",
    "compare {demo} {demo} --data {images}/good.npz --device abacus": "abacus",
    "compare {demo} {demo} --data {images}/good.npz --image-size 13": "13",
    "compare {demo} {demo} --data {images}/good.npz --decoder {detector}": "detector",
    "compare {demo} {demo} --data {images}/good.npz --decoder-b /no/such": "/no/such",
    "compare {demo} {encoder} --data {images}/good.npz --decoder-b {other_decoder}": "another encoder",
    "compare {demo} {demo} --data {images}/one": "12 images or more",
    "compare {demo} {demo} --data {images}/missing.npz": "does not exist",
    "compare {demo} {demo} --data {images}/objects.npz:x": "cannot be read as .npz",
    "compare {demo} {demo} --data no/such-file.npz": "does not exist",
    "compare {demo} {demo} --data {images}/good.npz -o {run}": "holds another run",
    "compare {demo} {demo} --data {images}/good.npz -o {images}": "is no run folder",
    "compare {demo} {demo} --data {images}/good.npz -o {images}/good.npz": "is a file",
    "compare {demo} {demo} --data {images}/good.npz -o /proc/nothing/here": "cannot write",
    "atlas": "no model: name at least one",
    "atlas ''": "expected the name of a model",
    "atlas --list /no/such/list": "--list /no/such/list cannot be read",
    "atlas --list {images}/good.npz": "no text in UTF-8",
    "atlas --list {images}": "cannot be read",
    "atlas {demo} -n 0": "--starts",
    "atlas {demo} --tol nan": "--tol",
    "atlas {demo} --merge blend": "relative, cosine",
    "atlas {demo} --decoder {decoder}": "No such option",
    "atlas {demo} --data {images}/good.npz": "both --data and --ood",
    "atlas {demo} -o {run}": "holds another run",
    "atlas {demo} -o {images}": "is no run folder",
    "atlas {demo} -o {images}/good.npz": "is a file",
    "atlas {demo} -o /proc/nothing/here": "cannot write",
    "report": "[Mm]issing argument|RUNS",
    "report /no/such/run": "is not a folder",
    "report {images}/good.npz": "is not a folder",
    "report {images}/empty": "holds no results.json",
    "report {images}": "holds no results.json",
    "report {run_results_cut}": "is not JSON",
    "report {run_results_list}": "is not a JSON object",
    "report {run_results_schema}": "is of schema 99",
    "report {run_results_odd}": "run_results_odd",
    "report {run_results_bare}": "holds nothing that a report shows",
    "report {run} {run_results_cut}": "is not JSON",
    "report {run} /no/such/run": "is not a folder",
    "report {run_pictures_cut}": "is no PNG",
    "report {run_link}": "no file of the run folder",
    "report {run} -o /proc/nothing/here.html": "cannot write",
    "report {run} -o {images}": "is a folder",
    "report {run} -o {images}/good.npz/page.html": "cannot write",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny):
    """What the commands name in braces."""
    root = tmp_path_factory.mktemp("bad")
    checkpoints, images = root / "checkpoints", root / "images"
    spoiled_checkpoints(tiny("mae"), checkpoints)
    spoiled_images(images)
    encoder, other = tiny("dinov2"), save_dinov2(root / "other", SIDE, PATCH, seed=5)
    quick(fmprobe.load(encoder)).save_pretrained(root / "decoder")
    quick(fmprobe.load(other)).save_pretrained(root / "other_decoder")
    copies = {"decoder_cut": root / "decoder", "decoder_edited": root / "decoder"}

    demo = fmprobe.load(DEMO, device="cpu")
    pictures = demo.load_images(f"{images}/good.npz")
    fmprobe.TrajectoryDetector(demo, max_steps=5).fit(pictures[:20], pictures[20:50]).save(root / "detector")
    _run(["probe", DEMO, "-o", str(root / "run"), "-n", "4", "--max-steps", "20", "--device", "cpu"])
    copies |= {"detector_cut": root / "detector"}
    copies |= dict.fromkeys(RUNS, root / "run")
    for name, original in copies.items():
        shutil.copytree(original, root / name)
    cut(root / "decoder_cut" / "model.safetensors")
    edit(root / "decoder_edited" / "config.json", size="vast", decoder=None, latent=None)
    cut(root / "detector_cut" / "detector.safetensors")
    for name, change in RUNS.items():
        change(root / name)
    names = ("decoder", "other_decoder", "detector", "run", *copies)
    return {name: root / name for name in names} | {
        "checkpoints": checkpoints,
        "images": images,
        "encoder": encoder,
        "demo": DEMO,
        "same": f"{DEMO} -n 4 --max-steps 20 --device cpu",  # of the run
    }


def _run(arguments: list[str]) -> object:
    """The exit code of the command line, in this process."""
    before = sys.argv
    sys.argv = ["fmprobe", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before
    return 0


def refused(command: str, message: str, places: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = shlex.split(command.format(**places, tmp=tmp_path))
    out = tmp_path / "out"
    if arguments[0] in ("probe", "weights", "ood", "memorization", "compare") and not {"-o", "--out"} & set(arguments):
        arguments += ["-o", str(out)]
    before = _contents(places["run"].parent)
    capsys.readouterr()
    code = _run(arguments)
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    last = said.rstrip().splitlines()[-1]
    assert re.match(r"fmprobe: |Error: ", last), said
    assert re.search(message, last), said
    assert not (out / "results.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    assert _contents(places["run"].parent) == before


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_spoiled_checkpoint(name, places, tmp_path, capsys):
    command = f"probe {{checkpoints}}/{name} -n 2 --max-steps 2 --device cpu"
    refused(command, CHECKPOINTS[name], places, tmp_path, capsys)


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_gives_no_images(source, places, tmp_path, capsys):
    refused(f"ood {{demo}} --device cpu --data {source}", SOURCES[source], places, tmp_path, capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_makes_no_sense(command, places, tmp_path, capsys):
    refused(command, COMMANDS[command], places, tmp_path, capsys)


def test_the_table_is_large_enough():
    assert len(CHECKPOINTS) + len(SOURCES) + len(COMMANDS) >= 190


def test_a_run_that_is_refused_can_be_read_still(places):
    assert json.loads((places["run"] / "results.json").read_text())["orbits"]["noise"]["starts"] == 4
