"""A fingerprint changes with whatever decides a value, and with nothing that only says where a model came from."""

import copy
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.surrogates import narrow
from support.surrogates import quick as fitted
from torch import nn

import fmprobe
from fmprobe.fingerprint import of_memory
from fmprobe.surrogates.artefact import load_surrogate

small = pytest.fixture(narrow, scope="module", autouse=True)
quick = functools.partial(fitted, steps=1)
COMMIT, LATER = "1" * 40, "2" * 40
NAMES = ("vit", "timm-vit", "kl", "mae")
PREPROCESSED = ("vit", "mae")
DECIDES = {  # of each checkpoint, keys that surely decide its output: so that the law has something to hold for
    "vit": {"hidden_act", "layer_norm_eps", "num_attention_heads"},
    "timm-vit": {
        "pretrained_cfg.mean",
        "pretrained_cfg.std",
        "pretrained_cfg.crop_pct",
        "pretrained_cfg.interpolation",
    },
    "kl": {"scaling_factor", "shift_factor", "norm_num_groups", "act_fn"},
    "mae": {"hidden_act", "layer_norm_eps", "num_attention_heads"},
}
PROCESSES = {"image_mean", "image_std", "size", "resample", "rescale_factor", "do_normalize"}
BOOKKEEPING = {
    "vit": ("_name_or_path", "transformers_version", "_commit_hash", "architectures", "id2label.0"),
    "timm-vit": ("pretrained_cfg.url", "pretrained_cfg.tag", "pretrained_cfg.license", "label_names"),
    "kl": ("_name_or_path", "_diffusers_version"),
    "mae": ("_name_or_path", "transformers_version", "_commit_hash"),
}


def picture_file(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / "0.png")
    return folder


def output(model, folder):
    """What a model makes of a picture and of fixed pixels."""
    pixels = torch.rand(1, *model.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.cat([model.encode(pixels).flatten(), model.encode(model.load_images(str(folder), 1)).flatten()])


def leaves(content, path=()):
    """Every value of nested JSON objects, with the keys that lead to it; lists are values."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def others(key, value):
    """Values near the one that a key has; those that fit no model are refused, or change nothing."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return {value + 1, 2 * value, value // 2} - {value}
    if isinstance(value, float):
        return [1.5 * value + 0.125]
    if isinstance(value, list):
        return [[1.25 * one + 0.125 if isinstance(one, int | float) else one for one in value]]
    named = {"hidden_act": "relu", "act_fn": "relu", "interpolation": "nearest", "crop_mode": "squash"}
    return [named.get(key, "other")]


def changed(content, keys, value):
    content = copy.deepcopy(content)
    inner = functools.reduce(lambda one, key: one.setdefault(key, {}), keys[:-1], content)
    inner[keys[-1]] = value
    return content


def single_changes(folder, file):
    content = json.loads((folder / file).read_text())
    for keys, value in leaves(content):
        for other in others(keys[-1], value):
            yield ".".join(keys), changed(content, keys, other)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_file(tmp_path_factory.mktemp("pictures"))


def held(folder, file, pictures):
    """The law for every single change of a JSON file of a checkpoint; the keys that changed the output."""
    before = fmprobe.load(folder)
    own, fingerprint, text = output(before, pictures), before.fingerprint, (folder / file).read_text()
    decide = set()
    for key, content in single_changes(folder, file):
        (folder / file).write_text(json.dumps(content))
        try:
            model = fmprobe.load(folder)
            now = output(model, pictures)
        except fmprobe.InputError:
            continue
        if now.shape != own.shape or not torch.equal(now, own):
            decide.add(key)
            assert model.fingerprint != fingerprint, f"{key} changes what {folder} gives and not its fingerprint"
    (folder / file).write_text(text)
    assert fmprobe.load(folder).fingerprint == fingerprint
    return {key.removesuffix(".height").removesuffix(".width").removesuffix(".shortest_edge") for key in decide}


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_a_config_that_changes_the_output_changes_the_fingerprint(tiny, name, tmp_path, pictures):
    folder = Path(shutil.copytree(tiny(name), tmp_path / "m"))
    assert held(folder, "config.json", pictures) >= DECIDES[name]


@pytest.mark.parametrize("name", PREPROCESSED)
def test_every_key_of_a_processor_that_changes_the_output_changes_the_fingerprint(tiny, name, tmp_path, pictures):
    folder = Path(shutil.copytree(tiny(name), tmp_path / "m"))
    assert held(folder, "preprocessor_config.json", pictures) >= PROCESSES - ({"size"} if name == "mae" else set())


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_counts_and_what_only_tells_of_a_model_does_not(tiny, name, tmp_path):
    folder = Path(shutil.copytree(tiny(name), tmp_path / "m"))
    seen = {fmprobe.load(folder).fingerprint}
    config = json.loads((folder / "config.json").read_text())
    for key in BOOKKEEPING[name]:
        config = changed(config, key.split("."), "something else")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("something else")
    seen.add(fmprobe.load(folder).fingerprint)
    assert len(seen) == 1
    weights = next(folder.glob("*.safetensors"))
    state = load_file(weights)
    chosen = sorted(key for key, value in state.items() if value.is_floating_point())[::5]
    for key in chosen:
        one = state[key].clone()
        one.view(-1)[-1] += 1e-3
        save_file(state | {key: one}, weights, metadata={"format": "pt"})
        seen.add(fmprobe.load(folder).fingerprint)
    assert len(seen) == 1 + len(chosen)


def test_seeds_of_random_weights_and_a_processor_of_the_caller_count(tiny):
    from transformers import CLIPImageProcessor

    models = [fmprobe.load(tiny("vit"), random_weights=seed) for seed in (None, 0, 1)]
    for mean in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]):
        processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32, image_mean=mean)
        models.append(fmprobe.load(tiny("vit"), processor=processor))
    prints = {model.fingerprint for model in models}
    assert len(prints) == 5
    processor.image_mean = [0.5, 0.5, 0.5]
    assert models[-1].fingerprint not in prints
    assert all(model.provenance["fingerprint"] for model in models)


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    """A hub's cache on this machine: two commits of one model that differ in their README."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--acme--tiny"
    for commit in (COMMIT, LATER):
        shutil.copytree(tiny("dinov2"), repository / "snapshots" / commit)
        (repository / "snapshots" / commit / "README.md").write_text(commit)
    (repository / "refs").mkdir()
    for name, commit in (("main", COMMIT), ("later", LATER)):
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return "acme/tiny"


def detector_of(model):
    """A detector whose orbits take too few steps to settle."""
    return fmprobe.TrajectoryDetector(model, max_steps=2).fit(fmprobe.procedural_images(30, 32))


def test_a_folder_and_every_commit_of_the_same_files_are_one_model(hub, tiny, tmp_path):
    models = [fmprobe.load(hub), fmprobe.load(hub, revision="later"), fmprobe.load(tiny("dinov2"))]
    assert [model.provenance["revision"] for model in models] == [COMMIT, LATER, None]
    assert len({model.fingerprint for model in models}) == 1
    quick(models[0]).save(tmp_path / "decoder")
    whole = [model.with_decoder(load_surrogate(tmp_path / "decoder", model)) for model in models]
    detector = detector_of(whole[0])
    detector.save(tmp_path / "detector")
    for model in (None, *whole):
        fmprobe.TrajectoryDetector.load(tmp_path / "detector", model)


def test_what_earlier_versions_made_goes_by_its_commit(hub, tiny, tmp_path):
    model = fmprobe.load(hub)
    decoder = quick(model)
    detector = detector_of(model.with_decoder(decoder))
    detector.save(tmp_path / "detector")

    def written(fingerprint):
        decoder.info["fingerprint"] = fingerprint
        decoder.save(tmp_path / "detector" / "decoder")
        path = tmp_path / "detector" / "detector.json"
        content = json.loads(path.read_text())
        content["model"] |= {"fingerprint": fingerprint, "revision": COMMIT if fingerprint == COMMIT else None}
        content["model"]["decoder"].pop("fingerprint", None)
        path.write_text(json.dumps(content))

    def read(model):
        whole = model.with_decoder(load_surrogate(tmp_path / "detector" / "decoder", model))
        fmprobe.TrajectoryDetector.load(tmp_path / "detector", whole)

    written(COMMIT)
    read(model)
    fmprobe.TrajectoryDetector.load(tmp_path / "detector")
    changed_since = [fmprobe.load(hub, revision="later"), fmprobe.load(tiny("dinov2"))]
    for other in (*changed_since, fmprobe.load(hub, random_weights=0)):
        with pytest.raises(fmprobe.InputError, match=r"earlier fmprobe.*fit a decoder for this one"):
            read(other)
        whole = other.with_decoder(decoder)
        with pytest.raises(fmprobe.InputError, match=r"earlier fmprobe.*fit a new detector"):
            fmprobe.TrajectoryDetector.load(tmp_path / "detector", whole)
    written("f" * 64)  # the content of a folder, as it was digested
    with pytest.raises(fmprobe.InputError, match=r"earlier fmprobe.*fit a decoder for this one"):
        read(fmprobe.load(tiny("dinov2")))


def in_memory(tiny):
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(tiny("dinov2"))
    module = AutoModel.from_pretrained(tiny("dinov2"))
    return module, processor, fmprobe.load(module, processor=processor)


def test_a_model_in_memory_is_identified_when_it_is_used(tiny, pictures):
    module, _, model = in_memory(tiny)
    mlp = module.encoder.layer[0].mlp
    before = quick(model)
    assert quick(model).info["fingerprint"] == before.info["fingerprint"] == model.fingerprint
    activation, mlp.activation_fn = mlp.activation_fn, nn.ReLU()
    other_function = quick(model)
    mlp.activation_fn = activation
    with torch.no_grad():
        mlp.fc1.weight.data.mul_(3)  # which torch's own counters of changes do not see
    other_weights = quick(model)
    assert len({decoder.info["fingerprint"] for decoder in (before, other_function, other_weights)}) == 3
    for one, two in ((before, other_function), (before, other_weights), (other_function, other_weights)):
        assert not torch.allclose(one.latent_mean, two.latent_mean, atol=1e-4)
    assert model.provenance["fingerprint"] == other_weights.info["fingerprint"]


def test_a_decoder_or_detector_of_a_model_that_has_changed_is_refused(tiny, tmp_path):
    module, _, model = in_memory(tiny)
    decoder = quick(model)
    decoder.save(tmp_path / "decoder")
    whole = model.with_decoder(decoder)
    detector = detector_of(whole)
    detector.save(tmp_path / "detector")
    fmprobe.TrajectoryDetector.load(tmp_path / "detector", whole)
    with torch.no_grad():
        decoder.latent_mean.data[0] += 1e-5
    with pytest.raises(fmprobe.InputError, match="decoder is"):
        fmprobe.TrajectoryDetector.load(tmp_path / "detector", whole)
    whole = model.with_decoder(load_surrogate(tmp_path / "decoder", model))
    fmprobe.TrajectoryDetector.load(tmp_path / "detector", whole)
    module.embeddings.cls_token.data.add_(1e-5)
    with pytest.raises(fmprobe.InputError, match="another encoder"):
        load_surrogate(tmp_path / "decoder", model)
    with pytest.raises(fmprobe.InputError, match="fingerprint is"):
        fmprobe.TrajectoryDetector.load(tmp_path / "detector", whole)


def test_functions_have_no_fingerprint_and_what_a_provenance_says_is_believed():
    made = fmprobe.from_functions(lambda x: x, None, image_shape=(3, 8, 8), latent_shape=(3, 8, 8))
    assert made.fingerprint is None
    made.provenance["fingerprint"] = "mine"
    assert made.fingerprint == "mine"
    assert made.derived(encode=lambda x: 2 * x).fingerprint == "mine"


SETTINGS = {"slope": 0.5}
SLOPE = 0.5


def doubled(x):
    return 2 * x


class Scaled(nn.Module):
    """Every place where a value that decides an output may lie."""

    gain = 1.0
    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3, eps=1e-3)
        self.leaky = nn.LeakyReLU(0.1)
        self.drop = nn.Identity()
        self.register_buffer("shift", torch.ones(3))
        self.register_buffer("scale", torch.ones(3), persistent=False)
        self.plain = torch.ones(3)
        self.array = np.ones(3, dtype=np.float32)
        self.act = nn.functional.gelu
        self.partial = functools.partial(torch.mul, other=1.0)
        self.closure = self.power(1.0)
        self.options = {"offset": 0.0, "steps": [1.0, 2.0]}
        self.flag = False

    @staticmethod
    def power(exponent):
        return lambda x: x.sign() * x.abs() ** exponent

    def forward(self, x):
        x = self.leaky(self.norm(self.linear(x))) * self.shift + self.scale * self.plain
        x = self.closure(self.partial(self.act(x + torch.from_numpy(self.array)))) * self.gain
        x = x + self.options["offset"] + sum(self.options["steps"]) + SETTINGS["slope"] * SLOPE
        return self.drop(-x if self.flag else x)


def hooked(factor):
    def hook(module, inputs, out):
        return out * factor

    return hook


CHANGES = {
    "weight": lambda m, _: m.linear.weight.data.add_(0.1),
    "bias removed": lambda m, _: setattr(m.linear, "bias", None),
    "buffer": lambda m, _: m.shift.data.add_(0.1),
    "buffer that is not saved": lambda m, _: m.scale.data.add_(0.1),
    "tensor": lambda m, _: m.plain.add_(0.1),
    "array": lambda m, _: m.array.__setitem__(0, 2.0),
    "dtype": lambda m, _: m.norm.double().float() and m.linear.weight.data.copy_(m.linear.weight.half()),
    "eps": lambda m, _: setattr(m.norm, "eps", 1.0),
    "slope": lambda m, _: setattr(m.leaky, "negative_slope", 0.3),
    "module": lambda m, _: setattr(m, "leaky", nn.ReLU()),
    "module added": lambda m, _: setattr(m, "drop", nn.Tanh()),
    "function of C": lambda m, _: setattr(m, "act", torch.tanh),
    "function of a library": lambda m, _: setattr(m, "act", nn.functional.relu),
    "function": lambda m, _: setattr(m, "act", doubled),
    "lambda": lambda m, _: setattr(m, "act", lambda x: 3 * x),
    "partial": lambda m, _: setattr(m, "partial", functools.partial(torch.mul, other=1.5)),
    "closure": lambda m, _: setattr(m, "closure", m.power(2.0)),
    "option": lambda m, _: m.options.update(offset=0.5),
    "list": lambda m, _: m.options["steps"].append(1.0),
    "flag": lambda m, _: setattr(m, "flag", True),
    "attribute of the class": lambda m, patch: patch.setattr(Scaled, "gain", 1.5),
    "method of the class": lambda m, patch: patch.setattr(Scaled, "forward", lambda self, x: 0.5 * x),
    "method of a library's class": lambda m, patch: patch.setattr(nn.LeakyReLU, "forward", lambda self, x: 0.5 * x),
    "global": lambda m, patch: patch.setitem(globals(), "SLOPE", 0.7),
    "content of a global": lambda m, patch: patch.setitem(SETTINGS, "slope", 0.7),
    "forward": lambda m, _: setattr(m, "forward", lambda x: 0.5 * x),
    "hook": lambda m, _: m.leaky.register_forward_hook(hooked(1.5)),
    "hook of other content": lambda m, _: m.norm.register_forward_hook(hooked(2.0)),
    "hook before": lambda m, _: m.norm.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],)),
    "parametrization": lambda m, _: nn.utils.parametrize.register_parametrization(m.linear, "weight", nn.Tanh()),
}
HARMLESS = {
    "forward pass": lambda m: m(torch.ones(1, 3)),
    "training mode": lambda m: m.train(),
    "gradients off": lambda m: m.requires_grad_(False),
    "a hook that was taken away": lambda m: m.norm.register_forward_hook(hooked(1.0)).remove(),
    "weights that come back": lambda m: m.load_state_dict(copy.deepcopy(m.state_dict())),
    "where it came from": lambda m: setattr(m, "name_or_path", "elsewhere"),
}


def made():
    torch.manual_seed(0)
    module = Scaled()
    module.norm.register_forward_hook(hooked(1.0))
    return module.eval()


@pytest.fixture
def scaled():
    return made()


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_the_output_of_a_module_changes_its_fingerprint(scaled, name, monkeypatch):
    images = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    before, own = of_memory(scaled), scaled(images)
    assert of_memory(copy.deepcopy(scaled)) == before
    CHANGES[name](scaled, monkeypatch)
    assert not torch.equal(scaled(images), own)
    assert of_memory(scaled) != before


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_change_the_output_of_a_module_leaves_its_fingerprint(scaled, name):
    before = of_memory(scaled)
    HARMLESS[name](scaled)
    assert of_memory(scaled) == before


def test_a_module_has_the_same_fingerprint_in_every_process(monkeypatch):
    spec = importlib.util.spec_from_file_location("test_fingerprint", __file__)  # as written, pytest's changes left out
    assert spec is not None
    assert spec.loader is not None
    here = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "test_fingerprint", here)
    spec.loader.exec_module(here)
    script = "import sys; sys.path[:0] = sys.argv[1:]; import test_fingerprint as t; print(t.of_memory(t.made()))"
    folder = Path(__file__).parent
    command = [sys.executable, "-c", script, str(folder), str(folder.parent), str(folder.parent / "adapters")]
    env = os.environ | {"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == of_memory(here.made())


def test_a_decoder_replaced_under_its_name_is_another_run(tiny, tmp_path):
    """The same command with the same words, and another decoder in the folder."""
    from fmprobe.runs.run import identity

    model = fmprobe.load(tiny("dinov2"))
    rows = []
    for seed in (0, 1):
        quick(model, seed=seed).save(tmp_path / "decoder")
        rows.append(identity(fmprobe.load(tiny("dinov2"), decoder=tmp_path / "decoder")))
    assert rows[0]["fingerprint"] == rows[1]["fingerprint"] == model.fingerprint
    assert rows[0]["decoder_fingerprint"] != rows[1]["decoder_fingerprint"]
