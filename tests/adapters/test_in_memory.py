"""A model in memory is used as it is and left as it is, or refused in one line."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import timm
import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.autoencoders.vq_model import VQModel
from support.checkpoints import DOWN, MEAN, PATCH, SIDE, STD, TRUNK, UP
from torch import nn

import fmprobe
from fmprobe.modules import placement

PROCESSOR = transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD)
KL: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": DOWN,
    "up_block_types": UP,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}


class MyKL(AutoencoderKL):
    """Of somebody's own."""


def vit(**config: Any) -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**cast(Any, TRUNK | config)), add_pooling_layer=False)


def timm_vit(**arguments: Any) -> Any:
    small = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **cast(Any, small | arguments))


def mae() -> nn.Module:
    decoder = {f"decoder_{key}": value for key, value in TRUNK.items() if "size" not in key or "_size" in key}
    decoder = {key: value for key, value in decoder.items() if "image" not in key and "patch" not in key}
    return transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**cast(Any, TRUNK | decoder)))


def qwen() -> nn.Module:
    return transformers.Qwen3Model(
        transformers.Qwen3Config(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            head_dim=16, vocab_size=50, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


MAKE: dict[str, Callable[[], Any]] = {
    "vit": vit,
    "mae": mae,
    "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**cast(Any, TRUNK))),
    "timm": timm_vit,
    "resnet": lambda: timm.create_model("resnet10t", channels=(8, 8, 16, 16)),
    "kl": lambda: AutoencoderKL(**KL),
    "tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    "qwen": qwen,
}  # fmt: skip
PROCESSED = ("vit", "mae", "clip")
SIZED = {"tiny": SIDE}  # its config states no size of images


def load(name: str, module: Any, **arguments: Any) -> fmprobe.Autoencoder:
    arguments = {"image_size": SIZED.get(name), **arguments}
    return fmprobe.load(module, processor=PROCESSOR if name in PROCESSED else None, **arguments)


def values(model: fmprobe.Autoencoder) -> torch.Tensor:
    """Latents of images, or f of latents where the model takes no images."""
    z = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not model.image_shape:
            return model.latent_map(z)
        return model.encode(torch.rand(2, *model.image_shape, generator=torch.Generator().manual_seed(0)))


def refusal(name: str, module: Any, **arguments: Any) -> str:
    with pytest.raises(fmprobe.InputError) as caught:
        load(name, module, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


WRAPS: dict[str, Callable[[Any], Any]] = {
    "compiled": lambda module: torch.compile(module),
    "parallel": nn.DataParallel,
    "compiled, parallel": lambda module: nn.DataParallel(cast(Any, torch.compile(module))),
    "parallel, compiled": lambda module: torch.compile(nn.DataParallel(module)),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("name", MAKE)
def test_what_is_wrapped_is_unwrapped(name, wrap):
    module = MAKE[name]().eval()
    assert torch.equal(values(load(name, WRAPS[wrap](module))), values(load(name, module)))


def test_distributed_data_parallel_is_unwrapped(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        module = timm_vit().eval()
        wrapped = nn.parallel.DistributedDataParallel(module)
        assert torch.equal(values(load("timm", wrapped)), values(load("timm", module)))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", MAKE)
def test_a_module_in_training_mode_is_evaluated_and_keeps_its_mode(name):
    """Dropout and the statistics of a batch never enter, whichever mode the owner leaves the module in, and when."""
    module = MAKE[name]().eval()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    expected = values(load(name, module))
    module.train()
    next(module.children()).eval()  # a frozen part
    modes = [part.training for part in module.modules()]
    state = {key: value.clone() for key, value in module.state_dict().items()}
    model = load(name, module)
    assert torch.equal(values(model), expected)
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    module.eval()
    assert torch.equal(values(model), expected)
    module.train()
    assert torch.equal(values(model), expected)
    assert all(part.training for part in module.modules())
    assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in MAKE[name]().parameters()]


def test_the_mode_comes_back_where_a_call_fails():
    module: Any = vit(hidden_dropout_prob=0.5).train()
    model = load("vit", module)
    module.embeddings.patch_embeddings.forward = None
    with pytest.raises(TypeError):
        model.encode(torch.rand(1, 3, SIDE, SIDE))
    assert all(part.training for part in module.modules())


@pytest.mark.parametrize("name", ["kl", "mae", "timm"])
def test_f_of_a_module_in_training_mode_can_be_compiled(name):
    module = MAKE[name]().train()
    model = load(name, module, compile="eager")
    if model.has_decoder:
        z = model.sample_latents(2)
        with torch.no_grad():
            torch.testing.assert_close(model.latent_map(z), load(name, module).latent_map(z), atol=1e-5, rtol=1e-5)
    assert module.training


def test_vaes_made_in_memory_or_from_a_config():
    made = AutoencoderKL(**KL).eval()
    made_so: list[Any] = [made, MyKL(**KL), AutoencoderKL.from_config(KL)]
    for module in made_so:
        module.load_state_dict(made.state_dict())
        model = load("kl", module)
        assert torch.equal(values(model), values(load("kl", made)))
        assert model.provenance["family"] == "diffusers"
    copy = AutoencoderKL.from_config(made.config)
    assert load("kl", copy).latent_shape == load("kl", made).latent_shape
    # As published, 64 channels wide, and with a config that states no size of images.
    assert load("tiny", AutoencoderTiny(), image_size=64).latent_shape == (4, 8, 8)


def test_an_autoencoder_of_diffusers_that_is_not_covered_is_named():
    assert "is of type 'VQModel', which no adapter covers" in refusal(
        "kl", VQModel(norm_num_groups=4, block_out_channels=(8,))
    )


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("name", MAKE)
def test_a_module_without_values_is_refused(name, part):
    module = MAKE[name]()
    (list(module.children())[-2 if name == "resnet" else -1] if part else module).to("meta")
    if not any(p.is_meta for p in module.parameters()):
        module.get_submodule("layers" if name == "vit" else "").to("meta")
    said = refusal(name, module)
    assert "on the meta device, which hold no values, such as" in said
    assert type(module).__name__ in said


def test_parameters_on_several_devices():
    lie = {"a": "cuda:0", "b": "cuda:1"}
    parameters = [
        (
            key,
            SimpleNamespace(
                device=torch.device(at), dtype=torch.float32, is_meta=False, is_floating_point=lambda: True
            ),
        )
        for key, at in lie.items()
    ]
    module: Any = SimpleNamespace(named_parameters=lambda: parameters, state_dict=dict)
    with pytest.raises(fmprobe.InputError, match="lies on cuda:0 and cuda:1: move the module to one device"):
        placement(module, "acme")
    module.hf_device_map = {"a": 0, "b": 1}  # accelerate moves what passes between them
    assert placement(module, "acme") == (torch.device("cuda:0"), torch.float32)


def test_a_module_without_parameters_is_refused():
    module: Any = nn.Identity()
    module.config = transformers.ViTConfig(**cast(Any, TRUNK))
    assert "Identity has no parameters" in refusal("vit", module)


@pytest.mark.parametrize("name", ["vit", "timm", "mae", "qwen"])
def test_a_quantised_module_is_refused(name):
    module = torch.ao.quantization.quantize_dynamic(MAKE[name]().eval(), {nn.Linear}, dtype=torch.qint8)
    assert "is quantised" in refusal(name, module)


@pytest.mark.parametrize("name", MAKE)
def test_a_module_of_two_types_is_right_or_refused(name):
    """By its first part in half precision: where its forward goes through, it is that of the module itself."""
    module = MAKE[name]().eval()
    next(part for part in module.children() if list(part.parameters())).half()
    refused, latents = "", None
    try:
        latents = values(load(name, module))
    except fmprobe.InputError as error:
        refused = str(error)
    if latents is None:
        assert "has parameters of float16 and float32" in refused
        assert "\n" not in refused
        return
    torch.testing.assert_close(latents, values(load(name, module.float())), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("architecture", ["resnet10t", "vit_tiny_patch16_224"])
def test_a_timm_model_of_features_only_is_refused(architecture):
    module = timm.create_model(architecture, features_only=True)
    assert "make the model without features_only" in refusal("timm", module)


@pytest.mark.parametrize("side", [16, 64])
def test_a_timm_model_made_for_a_size_is_loaded_for_it(side):
    module = timm_vit(img_size=side).eval()
    assert load("timm", module).image_shape == (3, side, side)
    said = refusal("timm", module, image_size=2 * side)
    assert f"does not take images of {2 * side} px" in said
    assert f"at its own, {side} px" in said


@pytest.mark.parametrize("architecture", ["resnet10t", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_timm_model_of_other_channels_says_so(architecture, channels):
    module: Any = timm.create_model(architecture, in_chans=channels).eval()
    said = refusal("timm", module)
    assert f"have {channels} channels, and its preprocessing states 3 means" in said
    module.pretrained_cfg |= {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    assert load("timm", module, image_size=None).image_shape[0] == channels


@pytest.mark.parametrize(
    ("make", "needs"),
    [
        (lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**cast(Any, TRUNK))), "ViTMAEForPreTraining"),
        (lambda: transformers.Dinov2Backbone(transformers.Dinov2Config(**cast(Any, TRUNK))), "Dinov2Model"),
    ],
)
def test_a_model_of_a_family_that_lacks_the_part_is_refused(make, needs):
    assert needs in refusal("vit", make())


@pytest.mark.parametrize("given", [nn.Linear(3, 3), transformers.ViTConfig(), 3, None, [1], vit])
def test_what_is_no_model_is_refused(given):
    assert "expected a hub id, a folder, or a model of transformers" in refusal("kl", given)
