"""What is made here is pushed to a hub on the loopback address and comes back, without a path of this machine."""

import json
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from support.hub import COMMIT, TOKEN, Hub, asked_here
from support.surrogates import quick
from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app
from fmprobe.surrogates.artefact import Surrogate, load_surrogate
from fmprobe.surrogates.kinds import KINDS

SETTINGS: dict[str, Any] = {"closed-form": {"k": 4}}
RUNS = ("prototypes", "run", "comparison", "ood", "scores", "surrogate")  # of `support.written`
LICENCE = "cc-by-4.0"  # of the base model


@pytest.fixture(scope="module")
def hub(tiny, tmp_path_factory):
    """A hub with a base model, which this process asks, with a token that may write to acme."""
    root, cache = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("cache")
    base = root / "models" / "acme" / "base"
    shutil.copytree(tiny("dinov2"), base)
    (base / "README.md").write_text(f"---\nlicense: {LICENCE}\n---\n")
    with Hub(root) as hub, asked_here(hub, cache):
        yield hub


@pytest.fixture(scope="module")
def encoder(hub):
    return fmprobe.load("acme/base")


@pytest.fixture(scope="module")
def local(tiny, tmp_path_factory):
    """The same encoder from a folder, whose path has a space."""
    folder = tmp_path_factory.mktemp("of-john doe") / "my models" / "dino"
    shutil.copytree(tiny("dinov2"), folder)
    return fmprobe.load(folder)


def fitted(model, kind, images=None):
    if kind in ("pixel", "latent"):
        return quick(model, images, kind=kind)
    return fmprobe.fit_decoder(model, images, kind, n_images=20, progress=False, **SETTINGS.get(kind, {}))


@pytest.fixture(scope="module")
def decoders(encoder):
    return {kind: fitted(encoder, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def detector(encoder, decoders):
    model = encoder.with_decoder(decoders["linear"])
    images = torch.rand(40, *model.image_shape, generator=torch.Generator().manual_seed(0))
    return fmprobe.TrajectoryDetector(model, max_steps=4).fit(images, held_out=0.5, progress=False)


def pushed(hub, name):
    """The files of a repository, by their place in it."""
    folder = hub.root / "models" / name
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def card(hub, name) -> Any:
    return ModelCard.load(pushed(hub, name)["README.md"])


def assert_of_no_machine(files, *places):
    """No file names the folders of this session, the working folder or the home, nor any of `places`."""
    scratch = Path(tempfile.gettempdir()) / "fmprobe-"
    forbidden = [str(place) for place in (Path.home(), Path.cwd(), scratch, "john doe", *places) if str(place) != "/"]
    for name, path in files.items():
        content = path.read_bytes()
        assert [place for place in forbidden if place.encode() in content] == [], name


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_comes_back_from_the_hub_as_it_was(kind, hub, encoder, decoders):
    decoder, before = decoders[kind], len(hub.commits)
    address = decoder.push_to_hub(f"acme/{kind}-decoder")
    (commit,) = hub.commits[before:]  # one commit
    assert address == f"{hub.url}/{commit[0]}/commit/{commit[1]}"
    again = type(decoder).from_pretrained(f"acme/{kind}-decoder", revision=commit[1])
    assert again.fingerprint == decoder.fingerprint
    images = torch.rand(2, *encoder.image_shape)
    known, found = (encoder.with_decoder(one) for one in (decoder, load_surrogate(commit[0], encoder)))
    assert torch.equal(known.encode(images), found.encode(images))
    assert Surrogate.from_pretrained(commit[0], model=encoder).fingerprint == decoder.fingerprint
    assert set(pushed(hub, commit[0])) == {"README.md", "config.json", "log.jsonl", "model.safetensors"}


def test_a_card_says_what_the_hub_reads(hub, encoder, decoders):
    decoders["pixel"].push_to_hub("acme/carded", branch="main")
    read, text = card(hub, "acme/carded").data, card(hub, "acme/carded").text
    assert read.base_model == ["acme/base"] or read.base_model == "acme/base"
    assert {"fmprobe", "surrogate-decoder", "pixel"} <= set(read.tags)
    assert read.library_name == "fmprobe"
    held_out = decoders["pixel"].info["validation"]
    values = {(one.dataset_name.partition(",")[0], one.metric_type): one.metric_value for one in read.eval_results}
    for name, row in held_out.items():
        for metric in ("l1", "feature_error"):
            assert values[name.replace("_", " "), metric] == pytest.approx(row[metric], rel=1e-5)
    assert set(read.metrics) == {"l1", "feature_error"}
    assert f'fmprobe.load("acme/base", revision="{COMMIT}"' in text
    assert 'PixelDecoder.from_pretrained("acme/carded", revision="main", model=encoder)' in text


def snippet(text):
    return text.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_snippet_of_a_card_loads_it(kind, hub, decoders):
    decoders[kind].push_to_hub(f"acme/run-{kind}")
    names: dict = {}
    exec(snippet(card(hub, f"acme/run-{kind}").text), names)
    assert names["model"].surrogate.fingerprint == decoders[kind].fingerprint


def test_the_licence_is_asked_for_or_that_of_the_base_model_and_never_made_up(hub, encoder, local, decoders, tmp_path):
    decoders["linear"].push_to_hub("acme/derived")
    assert card(hub, "acme/derived").data.license == LICENCE
    assert "that of the base model `acme/base`" in card(hub, "acme/derived").text
    decoders["linear"].push_to_hub("acme/asked", license="mit")
    assert card(hub, "acme/asked").data.license == "mit"
    own = fitted(local, "linear")
    own.push_to_hub("acme/undecided")
    own.save(tmp_path / "saved")
    own.save_pretrained(tmp_path / "shared")
    for text in (
        card(hub, "acme/undecided").content,
        (tmp_path / "saved" / "README.md").read_text(),
        (tmp_path / "shared" / "README.md").read_text(),
    ):
        assert "license:" not in text
        assert "whoever shares this decides" in text
    bad: Any
    for bad in ("", "MIT\nlicense: x", "two words", 3):
        with pytest.raises(fmprobe.InputError, match="expected a licence by its name"):
            own.push_to_hub("acme/undecided", license=bad)


def test_no_source_of_the_package_or_of_a_recipe_states_a_licence():
    package = Path(fmprobe.__file__).parent
    for path in (*package.rglob("*.py"), *(package.parent / "recipes").glob("*.py")):
        assert not re.search(r"^licen[sc]e: *\w", path.read_text(), re.MULTILINE | re.IGNORECASE), path


@pytest.mark.parametrize("kind", KINDS)
def test_a_local_model_and_local_data_are_named_by_their_folders(kind, hub, local, tmp_path):
    pictures = tmp_path / "john doe" / "my pictures"
    pictures.mkdir(parents=True)
    from PIL import Image

    for i in range(40):
        noise = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(i))
        Image.fromarray((noise * 255).byte().numpy()).save(pictures / f"{i:02}.png")
    decoder = fitted(local, kind, str(pictures))
    assert str(pictures) in decoder.info["data"]
    decoder.push_to_hub(f"acme/local-{kind}")
    assert_of_no_machine(pushed(hub, f"acme/local-{kind}"), tmp_path)
    text = card(hub, f"acme/local-{kind}").text
    assert "images of my pictures" in text
    assert '"dino"' in text
    assert card(hub, f"acme/local-{kind}").data.get("base_model") is None
    assert load_surrogate(f"acme/local-{kind}", local).fingerprint == decoder.fingerprint
    # What is saved for this machine keeps the place.
    decoder.save(tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["info"]["model"] == local.name
    assert_of_no_machine({"card": tmp_path / "kept" / "README.md"}, tmp_path)


def test_a_detector_comes_back_and_brings_its_model(hub, detector):
    images = torch.rand(6, *detector.model.image_shape)
    detector.push_to_hub("acme/detector")
    alone = fmprobe.TrajectoryDetector.from_pretrained("acme/detector", revision=hub.commits[-1][1])
    given = fmprobe.TrajectoryDetector.from_pretrained("acme/detector", model=detector.model)
    for again in (alone, given):
        assert torch.equal(again.score(images), detector.score(images))
        assert torch.equal(again.predict(images), detector.predict(images))
    data = card(hub, "acme/detector").data
    assert data.license == LICENCE
    assert data.eval_results[0].metric_value == pytest.approx(detector.describe()["decision"]["expected"], rel=1e-5)
    names = {"images": images}
    exec(snippet(card(hub, "acme/detector").text), names)
    assert_of_no_machine(pushed(hub, "acme/detector"))


def test_a_detector_of_a_local_model_asks_for_it(hub, local, tmp_path):
    model = local.with_decoder(fitted(local, "linear"))
    images = torch.rand(24, *model.image_shape)
    detector = fmprobe.TrajectoryDetector(model, max_steps=4).fit(images, progress=False)
    detector.push_to_hub("acme/local-detector")
    assert_of_no_machine(pushed(hub, "acme/local-detector"), tmp_path)
    with pytest.raises(fmprobe.InputError, match="fitted with dino, which is not here: pass model="):
        fmprobe.TrajectoryDetector.from_pretrained("acme/local-detector")
    again = fmprobe.TrajectoryDetector.from_pretrained("acme/local-detector", model=model)
    assert torch.equal(again.score(images), detector.score(images))
    detector.save(tmp_path / "saved")  # on this machine the model is found by its place
    assert torch.equal(fmprobe.TrajectoryDetector.load(tmp_path / "saved").score(images), detector.score(images))


def test_attractors_come_back(hub, encoder, decoders):
    found = fmprobe.find_attractors(encoder.with_decoder(decoders["linear"]), 4, max_steps=5, progress=False)
    found.push_to_hub("acme/attractors")
    again = fmprobe.AttractorSet.from_pretrained("acme/attractors", revision=hub.commits[-1][1])
    assert again.to_dict() == found.to_dict()
    assert torch.equal(again.orbits.ends, found.orbits.ends)
    assert again.model is not None
    assert again.model["model"] == "acme/base"
    assert card(hub, "acme/attractors").data.base_model in ("acme/base", ["acme/base"])
    bare = fmprobe.find_attractors(lambda z: z / 2, starts=torch.ones(2, 2), progress=False)
    bare.push_to_hub("acme/bare")
    assert fmprobe.AttractorSet.from_pretrained("acme/bare").model is None


@pytest.mark.parametrize("name", RUNS)
def test_a_run_comes_back_by_the_command_and_names_no_place(name, hub, written, tmp_path):
    folder = tmp_path / name
    shutil.copytree(written(name), folder)
    (folder / "shards").mkdir()
    (folder / "shards" / "0.safetensors").write_bytes(b"")
    (folder / "code.py").write_text("")
    (folder / "weights.bin").write_bytes(b"")
    (folder / "link.json").symlink_to("/etc/hostname")
    before, kept = len(hub.commits), sorted(folder.rglob("*"))
    done = CliRunner().invoke(app, ["push", str(folder), f"acme/of-{name}", "--private", "--license", "mit"])
    assert done.exit_code == 0, done.output
    assert len(hub.commits) == before + 1
    assert done.stdout.splitlines()[-1] == f"pushed      {hub.url}/acme/of-{name}/commit/{hub.commits[-1][1]}"
    assert f"acme/of-{name}" in hub.private
    files = pushed(hub, f"acme/of-{name}")
    assert_of_no_machine(files, tmp_path, written(name).parent)
    left = {"shards/0.safetensors", "events.jsonl", "config.yaml", "code.py", "weights.bin", "link.json"}
    whole = {str(path.relative_to(folder)) for path in kept if path.is_file()}
    assert set(files) - {"README.md"} == whole - left
    assert sorted(folder.rglob("*")) == kept
    run = fmprobe.RunFolder.from_pretrained(f"acme/of-{name}", revision=hub.commits[-1][1])
    assert run.results is not None
    assert run.results.keys() == json.loads((folder / "results.json").read_text()).keys()
    assert card(hub, f"acme/of-{name}").data.license == "mit"
    exec(snippet(card(hub, f"acme/of-{name}").text), {})


def test_the_figures_of_a_run_are_on_its_card(hub, written):
    found = json.loads((written("ood") / "results.json").read_text())["ood"]
    fmprobe.RunFolder(written("ood")).push_to_hub("acme/ood")
    metrics = {(one.dataset_name, one.metric_type) for one in card(hub, "acme/ood").data.eval_results}
    rule = found["detector"]["decision"]["rule"]
    assert {(f"{name}, by {rule}", "auroc") for name in found["sets"] if name != "in-distribution"} <= metrics
    count = json.loads((written("run") / "results.json").read_text())["attractors"]["count"]
    fmprobe.RunFolder(written("run")).push_to_hub("acme/run")
    assert [(one.metric_type, one.metric_value) for one in card(hub, "acme/run").data.eval_results] == [
        ("attractors", count)
    ]
    inner = fmprobe.AttractorSet.from_pretrained("acme/run", subfolder="attractors")
    assert len(inner) == count


def test_data_sets_of_the_hub_are_listed_and_no_others(written, hub, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(written("ood"), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    others = {"x": "mnist", "y": str(tmp_path), "z": "procedural"}
    manifest |= {"data": "streaming:acme/pictures:train#image", "ood": others}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    fmprobe.RunFolder(folder).push_to_hub("acme/listed")
    assert card(hub, "acme/listed").data.datasets == ["acme/pictures", "mnist"]


@pytest.mark.parametrize("kind", ["detector", "decoder", "attractors"])
def test_the_command_pushes_what_a_run_is_made_of(kind, hub, detector, decoders, encoder, tmp_path):
    if kind == "attractors":
        fmprobe.find_attractors(lambda z: z / 2, starts=torch.ones(2, 2), progress=False).save(tmp_path / kind)
    else:
        {"detector": detector, "decoder": decoders["pixel"]}[kind].save(tmp_path / kind)
    done = CliRunner().invoke(app, ["push", str(tmp_path / kind), f"acme/by-command-{kind}", "--json"])
    assert json.loads(done.stdout)["pushed"].startswith(f"{hub.url}/acme/by-command-{kind}/commit/")
    made = {"detector": fmprobe.TrajectoryDetector, "decoder": fmprobe.PixelDecoder, "attractors": fmprobe.AttractorSet}
    made[kind].from_pretrained(f"acme/by-command-{kind}")
    assert "README.md" in pushed(hub, f"acme/by-command-{kind}")


@pytest.mark.parametrize(
    ("folder", "name", "said"),
    [
        ("none", "acme/x", "is not a folder|holds no finished run"),
        ("unfinished", "acme/x", "holds no finished run"),
        ("broken", "acme/x", "results.json is not JSON"),
        ("run", "acme", "is no name of a repository"),
        ("run", "acme/x/y", "is no name of a repository"),
        ("run", "acme/a b", "is no name of a repository"),
        ("run", "acme/x..y", "is no name of a repository"),
        ("run", "other/x", "may not write to other/x"),
        ("run", "acme/public --private", "exists and is public"),
        ("run", "acme/x --license Bad!", "expected a licence by its name"),
    ],
)
def test_what_cannot_be_pushed_says_why_in_one_line_and_pushes_nothing(folder, name, said, hub, written, tmp_path):
    shutil.copytree(written("prototypes"), tmp_path / "run")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "manifest.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text("{")
    (hub.root / "models" / "acme" / "public").mkdir(exist_ok=True)
    repository, *options = name.split(" --")
    options = [part for option in options for part in f"--{option}".split()]
    refused(["push", str(tmp_path / folder), repository, *options], said, hub)


def refused(arguments, said, hub):
    before = len(hub.commits)
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, fmprobe.InputError), done.output
    assert "\n" not in str(done.exception)
    with pytest.raises(fmprobe.InputError, match=said):
        raise done.exception
    assert len(hub.commits) == before
    assert not (hub.root / "models" / "acme" / "x").exists()


@pytest.mark.parametrize(
    ("token", "endpoint", "said"),
    [
        (None, None, "there is no token to push to acme/x with"),
        ("hf_unknown", None, "does not know your token"),
        (TOKEN, "http://127.0.0.1:9", "cannot be reached"),
    ],
)
def test_without_a_token_or_a_hub_nothing_is_pushed(token, endpoint, said, hub, written, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    if endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    refused(["push", str(written("prototypes")), "acme/x"], said, hub)


def test_a_kind_says_which_it_expected(hub, decoders, tmp_path):
    decoders["latent"].save_pretrained(tmp_path / "d")
    with pytest.raises(fmprobe.InputError, match="of kind 'latent', expected 'pixel'"):
        fmprobe.PixelDecoder.from_pretrained(tmp_path / "d")
    with pytest.raises(fmprobe.InputError, match="no revision 'v7'"):
        fmprobe.RunFolder.from_pretrained("acme/base", revision="v7")
    with pytest.raises(fmprobe.InputError, match="revision 'v1' does not go with"):
        fmprobe.PixelDecoder.from_pretrained(tmp_path / "d", revision="v1")
    with pytest.raises(fmprobe.InputError, match="holds no decoder"):
        fmprobe.PixelDecoder.from_pretrained(tmp_path)


def test_only_files_that_run_no_code_are_fetched(hub):
    repository = hub.root / "models" / "acme" / "mixed"
    repository.mkdir()
    for name in ("results.json", "model.py", "model.bin", "x.pkl", "x.npz", "config.json"):
        (repository / name).write_text(json.dumps({"schema": 1}))
    folder = fmprobe.RunFolder.from_pretrained("acme/mixed").path
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "results.json"]


def test_what_was_fetched_is_pushed_on_and_written_whole(hub, written, tmp_path):
    """The hub's client links what it fetched to a store beside it."""
    fmprobe.RunFolder(written("prototypes")).push_to_hub("acme/first")
    run = fmprobe.RunFolder.from_pretrained("acme/first")
    run.push_to_hub("acme/second")
    run.save_pretrained(tmp_path / "run")
    for name, path in pushed(hub, "acme/first").items():
        if name not in ("README.md", "report.html"):
            assert pushed(hub, "acme/second")[name].read_bytes() == path.read_bytes()
            assert (tmp_path / "run" / name).read_bytes() == path.read_bytes()
    assert pushed(hub, "acme/second").keys() == pushed(hub, "acme/first").keys()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_symlink()]
    assert "Decoded attractors" in pushed(hub, "acme/second")["report.html"].read_text()


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_others_may_read_every_file(mask, written, decoders, detector, tmp_path, process_mask):
    process_mask(mask)
    for kind, decoder in decoders.items():
        decoder.save(tmp_path / kind)
        decoder.save_pretrained(tmp_path / "shared" / kind)
    detector.save(tmp_path / "detector")
    detector.save_pretrained(tmp_path / "shared" / "detector")
    found = fmprobe.find_attractors(lambda z: z / 2, starts=torch.ones(2, 2), progress=False)
    found.save(tmp_path / "attractors")
    fmprobe.RunFolder(written("run")).save_pretrained(tmp_path / "shared" / "run")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {path: oct(mode) for path, mode in modes.items() if path.is_file() and mode != 0o644 & ~mask} == {}
    assert {path: oct(mode) for path, mode in modes.items() if path.is_dir() and mode != 0o777 & ~mask} == {}


@pytest.mark.parametrize("name", ["run", "ood", "scores", "decoder", "surrogate"])
def test_others_may_read_every_file_of_a_run(name, written):
    files = [path for path in written(name).rglob("*") if path.is_file()]
    assert [path for path in files if not path.stat().st_mode & stat.S_IROTH] == []


@pytest.fixture
def process_mask():
    import os

    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)
