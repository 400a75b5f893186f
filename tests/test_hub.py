"""Models and data sets by name, through the real client and a hub on the loopback address, then again without it."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.hub import COMMIT, Hub
from support.runs import command, spawn
from support.spoiled import cut as truncate
from support.surrogates import quick

import fmprobe
from fmprobe.hub import check_config

LOAD = "import json, sys, test_hub; test_hub.answer(json.load(sys.stdin))"
GOOD = [
    {"name": "acme/tiny-dinov2"},
    {"name": "acme/tiny-dinov2", "revision": "v1"},
    {"name": "hf-hub:acme/tiny-timm"},
    {"name": "acme/tiny-pipeline", "image_size": 32},
    {"name": "acme/sharded"},
    {"name": "acme/tiny-dinov2", "decoder": "acme/decoder"},
    {"data": "acme/pictures:train"},
]
BAD = [
    ({"name": "acme/no-such-model"}, "the hub has no model 'acme/no-such-model'"),
    ({"name": "acme/tiny-dinov2", "revision": "v7"}, "no revision 'v7'"),
    ({"name": "acme/locked"}, "is gated: accept its terms"),
    ({"name": "acme/pickled"}, "only as pytorch_model.bin, and reading a pickle can execute code"),
    ({"name": "acme/own-code"}, "never executes that"),
    ({"name": "acme/empty"}, "holds no config.json"),
    ({"name": "acme/short"}, "weights of acme/short: model.safetensors is damaged"),
    ({"name": "acme/escaping"}, "lacks the weights file '../../secret.safetensors'"),
    ({"data": "acme/no-such-data"}, "acme/no-such-data"),
]
BROKEN_OFF = [
    ({"name": "acme/cut"}, "cannot fetch model.safetensors of acme/cut"),
    ({"data": "acme/pictures:train"}, "check the name, and the connection"),
]


def answer(questions):
    """Prints an answer to each question, in one line."""
    for asked in map(dict, questions):
        try:
            if "data" in asked:
                how = {"streaming": asked.get("streaming", False)}
                images = fmprobe.load_images(asked["data"], asked.get("n", 2), image_shape=(3, 8, 8), **how)
                print(json.dumps({"sum": float(images.sum()), "firsts": (images[:, 0, 0, 0] * 255).round().tolist()}))
                continue
            model = fmprobe.load(asked.pop("name"), image_size=asked.pop("image_size", None), **asked)
            print(json.dumps({"code": code_of(model)} | {key: model.provenance[key] for key in ("revision", "family")}))
        except fmprobe.InputError as error:
            print(json.dumps({"error": str(error)}))


def environment(cache: Path, endpoint: str) -> dict[str, str]:
    """What says where the hub is, and where is kept what it gave."""
    return {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}


def as_if_imported_now(endpoint: str, target: Callable[..., int | None], *arguments: object) -> int:
    """Calls a function once the libraries have read the environment again."""
    for module in (huggingface_hub.constants, datasets.config):  # type: ignore[attr-defined]
        importlib.reload(module)
    huggingface_hub.hf_api.api.endpoint = endpoint
    downloads: Any = huggingface_hub.file_download  # which waits a second before each further attempt
    downloads.time = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    warnings.simplefilter("ignore")
    return target(*arguments) or 0


def apart(cache: Path, endpoint: str, target: Callable[..., int | None], *arguments: object) -> tuple[int | None, str]:
    """Calls a function in a forked process that knows this hub; its exit code, and what it printed."""
    log = cache.with_name(f"{cache.name}-log")
    log.unlink(missing_ok=True)
    with mock.patch.dict(os.environ, environment(cache, endpoint)):
        process = spawn(as_if_imported_now, endpoint, target, *arguments, log=log)
    process.join()
    return process.exitcode, log.read_text()


def ask(questions, cache: Path, endpoint: str):
    code, said = apart(cache, endpoint, answer, questions)
    assert code == 0, said
    return answers_in(said)


def ask_offline(questions, cache: Path, endpoint: str):
    """What a new interpreter answers, whose libraries are told to ask no hub."""
    env = os.environ | environment(cache, endpoint) | {"HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), env.get("PYTHONPATH", "")])
    python, asked = [sys.executable, "-W", "ignore", "-c", LOAD], json.dumps(questions)
    done = subprocess.run(python, input=asked, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return answers_in(done.stdout)


def answers_in(text: str):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def code_of(model) -> float:
    with torch.no_grad():
        return float(model.encode(torch.full((1, *model.image_shape), 0.3)).sum())


@pytest.fixture(scope="module")
def codes(tiny):
    """What the first models give from their folders. The forked processes find the libraries imported."""
    names = {"dinov2": None, "timm-vit": None, "kl": 32, "vit": None}
    found = {name: code_of(fmprobe.load(tiny(name), image_size=size)) for name, size in names.items()}
    return [found[name] for name in ("dinov2", "dinov2", "timm-vit", "kl", "vit")]


@pytest.fixture(scope="module")
def root(tiny, codes, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    models = root / "models" / "acme"
    shutil.copytree(tiny("dinov2"), models / "tiny-dinov2")
    shutil.copytree(tiny("timm-vit"), models / "tiny-timm")
    shutil.copytree(tiny("kl"), models / "tiny-pipeline" / "vae")
    (models / "tiny-pipeline" / "model_index.json").write_text("{}")
    for name in ("locked", "cut", "short", "sharded", "pickled", "escaping"):
        shutil.copytree(tiny("vit"), models / name)
    truncate(models / "short" / "model.safetensors")  # on the hub itself
    weights = load_file(models / "sharded" / "model.safetensors")
    parts = {"model-1.safetensors": sorted(weights)[::2], "model-2.safetensors": sorted(weights)[1::2]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, models / "sharded" / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (models / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    index["weight_map"] = {"w": "../../secret.safetensors"}
    (models / "escaping" / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("sharded", "pickled", "escaping"):
        (models / name / "model.safetensors").unlink()
    torch.save({}, models / "pickled" / "pytorch_model.bin")
    for name, config in (("own-code", {"model_type": "custom", "auto_map": {"AutoModel": "m.M"}}), ("empty", None)):
        (models / name).mkdir()
        (models / name / "README.md").write_text(name)
        if config:
            (models / name / "config.json").write_text(json.dumps(config))
    decoder = quick(fmprobe.load(tiny("dinov2")))
    decoder.save(models / "decoder")
    pictures = root / "datasets" / "acme" / "pictures" / "train"
    pictures.mkdir(parents=True)
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
    return root


def test_by_name_then_offline_then_with_the_hub_down(root, codes, tmp_path):
    with Hub(root) as hub:
        online = ask(GOOD, tmp_path, hub.url)
        assert [answer.get("error") for answer in online] == [None] * len(GOOD)
        fetched = len(hub.asked)
        offline = ask_offline(GOOD, tmp_path, hub.url)
        assert len(hub.asked) == fetched  # nothing was asked
    assert offline == online
    # A dead endpoint: what is cached loads, what is not says so.
    *down, missing = ask([*GOOD[:6], {"name": "acme/never-seen"}], tmp_path, hub.url)
    assert down == online[:6]
    assert f"not in the local cache and {hub.url} cannot be reached" in missing["error"]
    assert {answer["revision"] for answer in online[:5]} == {COMMIT}
    assert [answer["family"] for answer in online[:5]] == ["dinov2", "dinov2", "timm", "diffusers", "vit"]
    assert [answer["code"] for answer in online[:5]] == pytest.approx(codes, abs=1e-3)


SHARDS, ROWS = 20, 6


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A hub with a data set of 20 files, whose picture r of file s is of the one value 10 s + r."""
    root = tmp_path_factory.mktemp("sharded-hub")
    folder = root / "datasets" / "acme" / "many" / "data"
    folder.mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for s in range(SHARDS):
        pictures = [Image.fromarray(np.full((8, 8, 3), 10 * s + r, dtype=np.uint8)) for r in range(ROWS)]
        rows = datasets.Dataset.from_dict({"image": pictures, "label": list(range(ROWS))}, features=features)
        rows.to_parquet(folder / f"train-{s:05d}-of-{SHARDS:05d}.parquet")
    return root


def test_a_streamed_set_gives_the_first_pictures_of_files_spread_evenly_and_fetches_no_others(sharded, tmp_path):
    with Hub(sharded) as hub:
        questions = [
            {"data": "streaming:acme/many:train#image", "n": 32},
            {"data": "acme/many", "n": 3, "streaming": True},
        ]
        many, few = ask(questions, tmp_path, hub.url)
        fetched = {name.rpartition("/")[2] for name in hub.asked if "GET" in name and name.endswith(".parquet")}
    files = [i * SHARDS // 16 for i in range(16)]
    assert many["firsts"] == [10 * s + r for s in files for r in range(2)]
    assert few["firsts"] == [0, 60, 130]
    # The first file is also looked at for the columns.
    assert fetched == {f"train-{s:05d}-of-{SHARDS:05d}.parquet" for s in files}


UNSTREAMED = [
    ({"data": "streaming:acme/many", "n": None}, "acme/many is streamed and may be endless: say how many images"),
    ({"data": "streaming:acme/many", "n": 16 * ROWS + 1}, f"has a file of {ROWS} images, and more of each"),
    ({"data": "streaming:acme/many:nope"}, "acme/many has no split 'nope': expected one of train"),
    ({"data": "streaming:acme/many#label"}, "acme/many#label holds"),
    ({"data": "streaming:acme/none"}, "acme/none is no folder or file here, and the hub gave no such data set"),
    ({"data": "streaming:.", "n": 3}, "is no data set of the hub, and only these are streamed"),
]


def test_what_cannot_be_streamed_says_why_in_one_line(sharded, tmp_path):
    with Hub(sharded) as hub:
        answers = ask([question for question, _ in UNSTREAMED], tmp_path, hub.url)
    for (_, said), answer in zip(UNSTREAMED, answers, strict=True):
        assert said in answer["error"]
        assert "\n" not in answer["error"]


def test_what_cannot_be_had_says_why_in_one_line(root, tmp_path):
    with Hub(root, gated=("acme/locked",), cut=("cut.bin",)) as hub:
        answers = ask([question for question, _ in BAD], tmp_path, hub.url)
        assert not any(name.endswith((".bin", ".py")) and "GET" in name for name in hub.asked)
    with Hub(root, cut=("model.safetensors", "1.png")) as hub:
        answers += ask([question for question, _ in BROKEN_OFF], tmp_path, hub.url)
    for (_, message), answer in zip(BAD + BROKEN_OFF, answers, strict=True):
        assert message in answer["error"]
        assert "\n" not in answer["error"]


def test_a_command_whose_download_breaks_off_says_so_and_the_next_one_goes_on(root, tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "out"
    with Hub(root, cut=("model.safetensors",)) as hub:
        code, said = apart(cache, hub.url, command, "probe", "acme/cut", "-o", out)
    assert code == 2
    assert said.rstrip().splitlines()[-1].startswith("fmprobe: cannot fetch model.safetensors of acme/cut")
    assert "Traceback" not in said
    assert not out.exists()
    with Hub(root) as hub:
        assert "error" not in ask([{"name": "acme/cut"}], cache, hub.url)[0]


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 10**6},
        {"vision_config": {"num_hidden_layers": 5000}},
        {"model_args": {"depth": 10**6}},
        {"depths": [1, 10**5]},
        {"hidden_size": 2**40},
        {"hidden_size": -1},
        {"image_size": [224, -224]},
        {"patch_size": float("nan")},
    ],
)
def test_absurd_configs_are_refused(config):
    with pytest.raises(fmprobe.InputError, match=r"config\.json of acme says"):
        check_config(config, "acme")


@pytest.mark.parametrize(
    ("name", "key", "value"), [("vit", "num_hidden_layers", 90), ("kl", "block_out_channels", [8, 8192])]
)
def test_a_config_that_describes_far_more_than_the_weights_is_refused(tiny, tmp_path, name, key, value):
    folder = Path(shutil.copytree(tiny(name), tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(fmprobe.InputError, match=r"describes [\d,]+ parameters and its weights hold"):
        fmprobe.load(folder)
