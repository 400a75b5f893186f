"""DINOv2, with or without registers, and DINOv3: self-supervised encoders without a decoder."""

from typing import ClassVar

from fmprobe_adapters._token_encoder import TokenEncoder


class DINOv2(TokenEncoder):
    """z = patch tokens after the final layer norm; CLS and register tokens are left out."""

    example = "facebook/dinov2-small"
    classes: ClassVar = {
        "dinov2": ("Dinov2Model", {}),
        "dinov2_with_registers": ("Dinov2WithRegistersModel", {}),
        "dinov3_vit": ("DINOv3ViTModel", {}),
    }
