"""CLIP: the image side of a contrastive model, without a decoder."""

from typing import ClassVar

from fmprobe_adapters._token_encoder import TokenEncoder


class CLIP(TokenEncoder):
    """z = patch tokens before the last layer norm, which CLIP applies only to its CLS token."""

    example = "openai/clip-vit-base-patch32"
    classes: ClassVar = {"clip": ("CLIPVisionModel", {}), "clip_vision_model": ("CLIPVisionModel", {})}
