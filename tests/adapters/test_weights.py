"""The weights of a checkpoint are the model's: each is there, in its shape, and none is left over, in every family."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import ENCODERS, LANGUAGE, OWN_DECODERS, SIDE, TIMM, TINY, save_timm

import fmprobe

State = dict[str, torch.Tensor]
# Weights that no patch token is computed with: of heads, text sides, poolers and counters.
HEADS = re.compile(
    r"^(text_|logit|visual_projection|classifier|head\.|fc\.|lm_head|(vit\.)?pooler)|vision_model\.head"
    r"|mask_token|num_batches_tracked"
)


def weights_of(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


@pytest.fixture
def changed(tiny, tmp_path) -> Callable[[str, Callable[[State], State]], Path]:
    """A copy of a tiny checkpoint with other weights."""

    def copy(name: str, change: Callable[[State], State]) -> Path:
        folder = Path(shutil.copytree(tiny(name), tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"))
        state = {key: value.clone() for key, value in change(load_file(weights_of(folder))).items()}
        save_file(state, weights_of(folder), metadata={"format": "pt"})
        return folder

    return copy


def load(folder: Path, name: str, **arguments: Any) -> fmprobe.Autoencoder:
    size = None if name in LANGUAGE or name.startswith("rae") or name == "mae" else SIDE
    return fmprobe.load(folder, image_size=size, **arguments)


def of_a_head(key: str, name: str) -> bool:
    # The last norm of CLIP is of its pooled token alone, that of SigLIP of every token.
    return bool(HEADS.search(key)) or ("post_layernorm" in key and name.startswith("clip"))


def needed(tiny, name: str) -> list[str]:
    return [key for key in sorted(load_file(weights_of(tiny(name)))) if not of_a_head(key, name)]


def refusal(folder: Path, name: str, capfd, **arguments: Any) -> str:
    """The one line that refuses a folder, where nothing else is printed."""
    capfd.readouterr()
    with pytest.raises(fmprobe.InputError) as caught:
        load(folder, name, **arguments)
    assert capfd.readouterr() == ("", "")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", TINY)
def test_a_weight_that_is_missing_is_named(name, tiny, changed, capfd):
    keys = needed(tiny, name)
    if name.startswith("rae"):  # buffers that the config states, so that they are not made up
        keys = [key for key in keys if key not in ("_latents_mean", "_latents_std")]
    for gone in {keys[0], keys[len(keys) // 2], keys[-1]}:
        folder = changed(name, lambda state, gone=gone: {k: v for k, v in state.items() if k != gone})
        assert "lacks 1 weights that" in (said := refusal(folder, name, capfd)), gone
        assert f"such as {gone}" in said


@pytest.mark.parametrize("name", TINY)
def test_weights_under_another_prefix_are_missing(name, changed, tiny, capfd):
    folder = changed(name, lambda state: {f"backbone.{key}": value for key, value in state.items()})
    said = refusal(folder, name, capfd)
    named = re.findall(r"[\w.]+\.(?:weight|bias)|\w+_tokens?\b|\w+_embeddings?\b", said.split("such as")[1])
    assert named
    assert any(key.endswith(named[0]) for key in load_file(weights_of(tiny(name))))


@pytest.mark.parametrize("name", TINY)
def test_a_weight_of_another_shape_is_named_with_both_shapes(name, tiny, changed, capfd):
    keys = needed(tiny, name)
    for other in {keys[0], keys[len(keys) // 2], keys[-1]}:
        state = load_file(weights_of(tiny(name)))
        ours, theirs = tuple(state[other].shape), tuple(side + 1 for side in state[other].shape)
        folder = changed(name, lambda state, other=other, theirs=theirs: state | {other: torch.zeros(theirs)})
        said = refusal(folder, name, capfd)
        assert all(str(part) in said for part in (other, ours, theirs)), said


@pytest.mark.parametrize("name", OWN_DECODERS)
def test_an_own_decoder_that_is_missing_is_named(name, changed, capfd):
    folder = changed(name, lambda state: {k: v for k, v in state.items() if not k.startswith("decoder.")})
    assert re.search(r"(such as|without) decoder\.", refusal(folder, name, capfd))


@pytest.mark.parametrize("name", TINY)
def test_a_layer_more_than_the_config_describes_is_no_part_of_another_model(name, tiny, changed, capfd):
    """It would be left out in silence, and so another model be probed."""
    layer = next(key for key in needed(tiny, name) if re.search(r"\.[01]\.", key))
    more = re.sub(r"\.[01]\.", ".9.", layer, count=1)
    folder = changed(name, lambda state: state | {more: state[layer]})
    assert f"such as {more}" in refusal(folder, name, capfd)


@pytest.mark.parametrize("name", [*ENCODERS, *TIMM])
def test_heads_that_z_does_not_pass_through_may_be_missing(name, tiny, changed):
    folder = changed(name, lambda state: {k: v for k, v in state.items() if not of_a_head(k, name)})
    whole, headless = load(tiny(name), name), load(folder, name)
    images = torch.rand(2, *whole.image_shape)
    assert torch.equal(whole.encode(images), headless.encode(images))


@pytest.mark.parametrize(("name", "head"), [("siglip", "vision_model.head."), ("clip", "vision_model.post_layernorm.")])
def test_heads_that_z_passes_through_may_not(name, head, changed, capfd):
    folder = changed(name, lambda state: {k: v for k, v in state.items() if not k.startswith(head)})
    assert f"such as {head}" in refusal(folder, name, capfd, tokens="pooled")


@pytest.mark.parametrize("name", TINY)
def test_nothing_is_printed_of_weights_that_are_right(name, tiny, capfd):
    tiny(name)
    capfd.readouterr()
    load(tiny(name), name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("classes", [(5, 1000), (10, 1000), (0, 1000), (10, 10)])
def test_timms_config_may_state_any_number_of_classes(classes, tiny, changed, capfd):
    """Where its two numbers differ, timm itself leaves every weight that is missing as it was drawn."""
    whole = load(tiny("timm-resnet"), "timm-resnet")
    images = torch.rand(2, *whole.image_shape)

    def stated(folder: Path) -> Path:
        config = json.loads((folder / "config.json").read_text())
        config |= {"num_classes": classes[0], "pretrained_cfg": config["pretrained_cfg"] | {"num_classes": classes[1]}}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    assert torch.equal(load(stated(changed("timm-resnet", dict)), "timm-resnet").encode(images), whole.encode(images))
    cut = changed("timm-resnet", lambda state: {k: v for k, v in state.items() if not k.startswith("layer3.")})
    assert "such as layer3.0." in refusal(stated(cut), "timm-resnet", capfd)
    renamed = changed("timm-resnet", lambda state: {f"backbone.{k}": v for k, v in state.items()})
    assert "it holds backbone." in refusal(stated(renamed), "timm-resnet", capfd)


@pytest.mark.parametrize("extra", [{}, {"labels": ["a"] * 5}, {"num_features": 24, "labels": ["a"] * 5, "paper": "x"}])
def test_timms_flat_config_of_2021(extra, tiny, tmp_path):
    """timm itself loads it: its entries are those of the pretrained configuration."""
    folder = save_timm(tmp_path / "flat", "resnet10t")
    whole = fmprobe.load(folder)
    config = json.loads((folder / "config.json").read_text())
    flat = {"architecture": config["architecture"], **config["pretrained_cfg"], "num_classes": 5, **extra}
    (folder / "config.json").write_text(json.dumps(flat))
    images = torch.rand(1, *whole.image_shape)
    assert torch.equal(fmprobe.load(folder).encode(images), whole.encode(images))


@pytest.mark.parametrize("name", ["timm-vit", "timm-swin", "vit", "qwen3", "kl"])
def test_weights_in_several_files_are_all_read(name, tiny, tmp_path):
    folder = Path(shutil.copytree(tiny(name), tmp_path / "shards"))
    whole = weights_of(folder)
    state, stem = load_file(whole), whole.name.removesuffix(".safetensors")
    keys = sorted(state)
    parts = {f"{stem}-0000{i + 1}-of-00002.safetensors": keys[i::2] for i in range(2)}
    for file, held in parts.items():
        save_file({key: state[key] for key in held}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, held in parts.items() for key in held}}
    (folder / f"{whole.name}.index.json").write_text(json.dumps(index))
    whole.unlink()
    one, many = load(tiny(name), name), load(folder, name)
    if name in LANGUAGE:
        z = one.sample_latents(1)
        assert torch.equal(one.latent_map(z), many.latent_map(z))
        return
    images = torch.rand(1, *one.image_shape)
    assert torch.equal(one.encode(images), many.encode(images))


def test_timms_filters_for_other_channels_are_not_made_up(tiny, changed, tmp_path, capfd):
    folder = changed("timm-resnet", dict)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_args": config["model_args"] | {"in_chans": 2}}))
    assert "holds conv1.0.weight of shape" in refusal(folder, "timm-resnet", capfd)
