"""Tiny checkpoints with random weights, in Hugging Face layout, one of every kind that an adapter covers."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
SIDE, PATCH = 32, 8
SEED = 11  # of the weights: not the one that a test gives random weights
TRUNK = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": PATCH,
}
TEXT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50}
DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2


def save_mae(folder: Path, side: int = 16, patch: int = 4, **config: Any) -> Path:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    settings: dict[str, Any] = {
        "image_size": side,
        "patch_size": patch,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 64,
    }
    torch.manual_seed(SEED)
    ViTMAEForPreTraining(ViTMAEConfig(**(settings | config))).save_pretrained(folder)
    _save_processor(folder, side)
    return folder


def save_dinov2(
    folder: Path, side: int = 28, patch: int = 7, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        image_size=side,
        patch_size=patch,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
    )
    torch.manual_seed(seed)
    module: Any = Dinov2Model(config)
    module.to(dtype).save_pretrained(folder)
    _save_processor(folder, side)
    return folder


def _save_processor(folder: Path, side: int) -> None:
    from transformers import ViTImageProcessor

    size = {"height": side, "width": side}
    ViTImageProcessor(size=size, image_mean=MEAN, image_std=STD, do_convert_rgb=True).save_pretrained(folder)


def save_encoder(folder: Path, model_class: str, config_class: str, **config: Any) -> Path:
    """An encoder of transformers; its processor resizes the short side and crops, as most do."""
    import transformers
    from transformers import CLIPImageProcessor

    torch.manual_seed(SEED)
    settings = getattr(transformers, config_class)(**config)
    getattr(transformers, model_class)(settings).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)
    return folder


def save_timm(folder: Path, architecture: str, **arguments: Any) -> Path:
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(SEED)
    model: Any = timm.create_model(architecture, num_classes=5, **arguments)
    model.pretrained_cfg |= {"input_size": (3, SIDE, SIDE), "mean": tuple(MEAN), "std": tuple(STD), "url": ""}
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    return folder


def save_timm_vit(folder: Path, **arguments: Any) -> Path:
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return save_timm(folder, "vit_tiny_patch16_224", **sizes, **arguments)


def save_diffusers(folder: Path, model_class: str, **config: Any) -> Path:
    import diffusers

    torch.manual_seed(SEED)
    getattr(diffusers, model_class)(**config).save_pretrained(folder)
    return folder


def save_rae(folder: Path, encoder: str) -> Path:
    """Its decoder paints 64 px, its encoder takes 32."""
    statistics = {"latents_mean": torch.full((64, 1, 1), 0.1), "latents_std": torch.full((64, 1, 1), 0.7)}
    return save_diffusers(
        folder,
        "AutoencoderRAE",
        encoder_type=encoder,
        encoder_hidden_size=64,
        encoder_patch_size=8,
        encoder_num_hidden_layers=1,
        encoder_input_size=32,
        patch_size=16,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        **statistics,
    )


def save_published(root: Path, encoder: str, side: int = 32) -> tuple[Path, Path]:
    """An encoder and the repository of a decoder that was published for it; the encoder's last norm has weights."""
    from safetensors.torch import load_file, save_file

    alone, whole = root / "encoder", root / "decoder"
    if encoder == "siglip2":  # diffusers' own class cannot be made for it with this transformers
        save_rae(whole, "mae")
        stored = load_file(whole / "diffusion_pytorch_model.safetensors")
        kept = {key: value for key, value in stored.items() if not key.startswith("encoder.")}
        save_file(kept, whole / "diffusion_pytorch_model.safetensors")
        config = json.loads((whole / "config.json").read_text())
        (whole / "config.json").write_text(json.dumps({**config, "encoder_type": "siglip2"}))
        trunk = {**TRUNK, "hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1}
        save_encoder(alone, "SiglipModel", "SiglipConfig", vision_config=trunk, text_config=TEXT)
    else:
        save_rae(whole, encoder)
        from diffusers.models.autoencoders.autoencoder_rae import AutoencoderRAE

        inner: Any = AutoencoderRAE.from_pretrained(whole).encoder
        for name in ("weight", "bias"):
            setattr(inner.layernorm, name, torch.nn.Parameter(torch.rand(64) + 0.5))
        inner.save_pretrained(alone)
        _save_processor(alone, side)
    return alone, whole


def save_language(folder: Path, name: str) -> Path:
    import transformers

    torch.manual_seed(SEED)
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=50,
        bos_token_id=1,
        eos_token_id=2,
    )
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
    return folder


CONVOLUTIONS: dict[str, Any] = {"latent_channels": 4, "norm_num_groups": 4, "sample_size": SIDE}
ENCODERS: dict[str, Callable[[Path], Path]] = {
    "vit": partial(save_encoder, model_class="ViTForImageClassification", config_class="ViTConfig", **TRUNK),
    "deit": partial(save_encoder, model_class="DeiTModel", config_class="DeiTConfig", **TRUNK),
    "beit": partial(save_encoder, model_class="BeitModel", config_class="BeitConfig", **TRUNK),
    "data2vec": partial(save_encoder, model_class="Data2VecVisionModel", config_class="Data2VecVisionConfig", **TRUNK),
    "ijepa": partial(save_encoder, model_class="IJepaModel", config_class="IJepaConfig", **TRUNK),
    "dinov2": partial(save_encoder, model_class="Dinov2Model", config_class="Dinov2Config", **TRUNK),
    "dinov2-registers": partial(
        save_encoder, model_class="Dinov2WithRegistersModel", config_class="Dinov2WithRegistersConfig", **TRUNK
    ),
    "dinov3": partial(
        save_encoder, model_class="DINOv3ViTModel", config_class="DINOv3ViTConfig", num_register_tokens=4, **TRUNK
    ),
    "clip": partial(
        save_encoder, model_class="CLIPModel", config_class="CLIPConfig", vision_config=TRUNK, text_config=TEXT
    ),
    "clip-vision": partial(save_encoder, model_class="CLIPVisionModel", config_class="CLIPVisionConfig", **TRUNK),
    "siglip": partial(
        save_encoder, model_class="SiglipModel", config_class="SiglipConfig", vision_config=TRUNK, text_config=TEXT
    ),
}
TIMM: dict[str, Callable[[Path], Path]] = {
    "timm-vit": save_timm_vit,
    "timm-registers": partial(save_timm_vit, reg_tokens=4),
    "timm-resnet": partial(save_timm, architecture="resnet10t", channels=(8, 8, 16, 16)),
    "timm-swin": partial(
        save_timm,
        architecture="swin_tiny_patch4_window7_224",
        img_size=SIDE,
        window_size=4,
        embed_dim=12,
        depths=(1, 1),
        num_heads=(2, 2),
    ),
}
OWN_DECODERS: dict[str, Callable[[Path], Path]] = {
    "mae": save_mae,
    "kl": partial(
        save_diffusers,
        model_class="AutoencoderKL",
        block_out_channels=(8, 16),
        down_block_types=DOWN,
        up_block_types=UP,
        scaling_factor=0.3,
        shift_factor=0.1,
        **CONVOLUTIONS,
    ),
    "asymmetric": partial(
        save_diffusers,
        model_class="AsymmetricAutoencoderKL",
        down_block_out_channels=(8, 16),
        up_block_out_channels=(8, 16),
        down_block_types=DOWN,
        up_block_types=UP,
        **CONVOLUTIONS,
    ),
    "taesd": partial(
        save_diffusers,
        model_class="AutoencoderTiny",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    "dc": partial(
        save_diffusers,
        model_class="AutoencoderDC",
        latent_channels=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    ),
    "rae-mae": partial(save_rae, encoder="mae"),
    "rae-dinov2": partial(save_rae, encoder="dinov2"),
}
LANGUAGE: dict[str, Callable[[Path], Path]] = {
    "qwen3": partial(save_language, name="Qwen3"),
    "llama": partial(save_language, name="Llama"),
}
TINY = ENCODERS | TIMM | OWN_DECODERS | LANGUAGE
