"""Tiny checkpoints with random weights, in Hugging Face layout."""

from pathlib import Path
from typing import Any

import torch

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


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
    torch.manual_seed(0)
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
