"""Every image processor works as the library's own call does on a picture, or is refused in one line."""

import json
import pickle
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.checkpoints import SIDE, TRUNK

import fmprobe

SQUARE = {"height": SIDE, "width": SIDE}
OFFSET = {"rescale_offset": True, "rescale_factor": 1 / 127.5}
# By name: the class of transformers and its arguments. A photo of another shape may be refused where nothing crops it.
WORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("ViTImageProcessor", {"size": SQUARE}),
    "pil": ("ViTImageProcessorPil", {"size": SQUARE}),
    "size as a number": ("ViTImageProcessor", {"size": SIDE}),
    "crop as a number": ("CLIPImageProcessor", {"size": 36, "crop_size": SIDE}),
    "crop larger than the image": ("CLIPImageProcessor", {"size": {"shortest_edge": 24}, "crop_size": SQUARE}),
    "crop and no resize": ("CLIPImageProcessor", {"do_resize": False, "crop_size": SQUARE}),
    "crop that is not square": ("CLIPImageProcessor", {"size": 50, "crop_size": {"height": SIDE, "width": 48}}),
    "one mean": ("ViTImageProcessor", {"size": SQUARE, "image_mean": 0.5, "image_std": 0.25}),
    "a list of one mean": ("ViTImageProcessor", {"size": SQUARE, "image_mean": [0.5], "image_std": [0.25]}),
    "resample by name": ("ViTImageProcessor", {"size": SQUARE, "resample": "bicubic"}),
    "resample nearest": ("ViTImageProcessor", {"size": SQUARE, "resample": 0}),
    "bytes": ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False}),
    "to 0..2": ("ViTImageProcessor", {"size": SQUARE, "rescale_factor": 1 / 127.5}),
    "to 0..2, as they are": ("ViTImageProcessor", {"size": SQUARE, "rescale_factor": 1 / 127.5, "do_normalize": False}),
    "to -1..1": ("EfficientNetImageProcessor", {"size": SQUARE, "do_normalize": False, "include_top": False, **OFFSET}),
    "to -1..1, normalised": ("EfficientNetImageProcessor", {"size": SQUARE, "include_top": False, **OFFSET}),
    "not normalised": ("ViTImageProcessor", {"size": SQUARE, "do_normalize": False}),
    "padding that has nothing to pad": ("ViTImageProcessor", {"size": SQUARE, "do_pad": True, "pad_size": SQUARE}),
    "converts": ("ViTImageProcessor", {"size": SQUARE, "do_convert_rgb": True}),
    "crops by itself": ("ConvNextImageProcessor", {"size": {"shortest_edge": SIDE}}),
    "levit": ("LevitImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}),
    "flips channels": ("MobileViTImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": SQUARE}),
}
BY_THE_PHOTO: dict[str, tuple[str, dict[str, Any]]] = {  # what comes out has the photo's own shape
    "short side, no crop": ("CLIPImageProcessor", {"size": {"shortest_edge": SIDE}, "do_center_crop": False}),
    "short and long side": ("ViTImageProcessor", {"size": {"shortest_edge": SIDE, "longest_edge": 64}}),
    "no resize": ("ViTImageProcessor", {"do_resize": False}),
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "no size": ("ViTImageProcessor", {"size": None}),
    "long side alone": ("ViTImageProcessor", {"size": {"longest_edge": SIDE}}),
    "no mean": ("ViTImageProcessor", {"size": SQUARE, "image_mean": None}),
    "two means": ("ViTImageProcessor", {"size": SQUARE, "image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]}),
    "no such filter": ("ViTImageProcessor", {"size": SQUARE, "resample": 99}),
    "scaled by 0": ("ViTImageProcessor", {"size": SQUARE, "rescale_factor": 0.0}),
    "divided by 0": ("ViTImageProcessor", {"size": SQUARE, "image_std": [0.0, 0.0, 0.0]}),
    "pads by the mean": (
        "ViTImageProcessor",
        {"size": {"max_height": SIDE, "max_width": SIDE}, "do_pad": True, "pad_size": SQUARE},
    ),
    "normalises twice": ("EfficientNetImageProcessor", {"size": SQUARE}),
    "patches": ("Siglip2ImageProcessor", {}),
}


def made(name: str) -> Any:
    kind, arguments = (WORKS | BY_THE_PHOTO | REFUSED)[name]
    return getattr(transformers, kind)(**arguments)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return transformers.ViTModel(transformers.ViTConfig(**cast(Any, TRUNK)), add_pooling_layer=False).eval()


def one_line(error: pytest.ExceptionInfo[fmprobe.InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def agree(module: Any, processor: Any, folder: Any, image: Image.Image) -> None:
    """What fmprobe encodes of a picture is what the library makes of its own processor's values."""
    image.save(folder / "picture.png")
    model = fmprobe.load(module, processor=processor)
    images = model.load_images(str(folder))
    assert images.min() >= 0
    assert images.max() <= 1
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        whole = module(pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(model.encode(images), whole[:, 1:], atol=1e-5, rtol=1e-5)
    json.dumps(model.provenance)


@pytest.mark.parametrize("size", [(90, 61), (61, 90), (60, 60), (20, 24)])
@pytest.mark.parametrize("name", WORKS)
def test_a_picture_is_processed_as_the_library_does(name, size, vit, tmp_path):
    agree(vit, made(name), tmp_path, picture(*size))


@pytest.mark.parametrize("name", BY_THE_PHOTO)
def test_a_photo_that_comes_out_in_another_shape_is_refused_by_name(name, vit, tmp_path):
    agree(vit, made(name), tmp_path, picture(SIDE, SIDE))
    picture(90, 61).save(tmp_path / "picture.png")
    with pytest.raises(fmprobe.InputError, match=r"picture\.png .*model is loaded for 32 px") as caught:
        fmprobe.load(vit, processor=made(name)).load_images(str(tmp_path))
    one_line(caught)


@pytest.mark.parametrize("name", REFUSED)
def test_a_processor_that_cannot_be_followed_is_refused(name, vit):
    with pytest.raises(fmprobe.InputError) as caught:
        fmprobe.load(vit, processor=made(name))
    assert "ViTModel" in one_line(caught)


@pytest.mark.parametrize("size", [16, 48])
@pytest.mark.parametrize("name", ["plain", "crop as a number", "crops by itself"])
def test_another_size_scales_what_the_processor_does(name, size, vit, tmp_path):
    """As a processor with every one of its sizes scaled."""
    picture(90, 61).save(tmp_path / "picture.png")
    images = fmprobe.load(vit, processor=made(name), image_size=size).load_images(str(tmp_path))
    scaled = made(name)
    sizes = {
        what: {key: value * size // SIDE for key, value in dict(getattr(scaled, what)).items() if value is not None}
        for what in ("size", "crop_size")
        if getattr(scaled, what, None)
    }
    pixels = scaled(picture(90, 61), return_tensors="pt", do_normalize=False, **sizes)["pixel_values"]
    assert images.shape == (1, 3, size, size)
    torch.testing.assert_close(images, pixels.float(), atol=1e-6, rtol=0)


def test_the_image_side_of_a_processor_of_images_and_text(vit, tmp_path):
    class Both:
        image_processor = made("plain")

    picture(40, 40).save(tmp_path / "picture.png")
    both, alone = (fmprobe.load(vit, processor=p).load_images(str(tmp_path)) for p in (Both(), Both.image_processor))
    assert torch.equal(both, alone)


@pytest.mark.parametrize(
    "given", ["openai/clip-vit-base-patch32", torch.nn.Identity(), {"size": 32}, lambda image: image]
)
def test_what_is_no_image_processor_is_refused(given, vit):
    with pytest.raises(fmprobe.InputError, match="expected an image processor of transformers") as caught:
        fmprobe.load(vit, processor=given)
    one_line(caught)


@pytest.mark.parametrize("name", ["timm-resnet", "kl", "rae-mae", "qwen3"])
def test_a_family_that_reads_no_processor_refuses_one(name, tiny):
    with pytest.raises(fmprobe.InputError, match="processor does not go with"):
        fmprobe.load(tiny(name), processor=made("plain"))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_grey_models_take_grey_pictures_and_one_mean(channels, mode, tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(**cast(Any, TRUNK), num_channels=channels)
    module = transformers.ViTModel(config, add_pooling_layer=False).eval()
    processor = transformers.ViTImageProcessor(size=SQUARE, image_mean=[0.4], image_std=[0.2])
    agree(module, processor, tmp_path, picture(90, 61, mode))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_means_of_other_channels_are_refused(channels):
    config = transformers.ViTConfig(**cast(Any, TRUNK), num_channels=channels)
    module = transformers.ViTModel(config, add_pooling_layer=False)
    with pytest.raises(fmprobe.InputError, match=f"have {channels} channels, .* states 3 means"):
        fmprobe.load(module, processor=made("plain"))


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_no_picture_has_come_as_tensors(channels, tmp_path):
    config = transformers.ViTConfig(**cast(Any, TRUNK), num_channels=channels)
    module = transformers.ViTModel(config, add_pooling_layer=False)
    model = fmprobe.load(module, processor=made("one mean"))
    assert model.encode(torch.rand(2, channels, SIDE, SIDE)).shape == (2, 16, 24)
    picture(40, 40).save(tmp_path / "picture.png")
    with pytest.raises(fmprobe.InputError, match=f"images of {channels} channels"):
        model.load_images(str(tmp_path))


@pytest.mark.parametrize("name", ["vit", "clip", "timm-vit", "kl"])
def test_a_transform_goes_to_the_processes_of_a_loader(name, tiny):
    """Processes that are not forked are given it as bytes."""
    model = fmprobe.load(tiny(name), image_size=SIDE)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    sent = pickle.loads(pickle.dumps(model.transform))
    assert torch.equal(sent(picture), model.transform(picture))
