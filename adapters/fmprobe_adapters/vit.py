"""ViT and its relatives: supervised, distilled, masked-image and joint-embedding encoders without a decoder."""

from typing import ClassVar

from fmprobe_adapters._token_encoder import TokenEncoder

NO_POOLER = {"add_pooling_layer": False}  # its weights are missing from most checkpoints


class ViT(TokenEncoder):
    """z = patch tokens as the library returns them: ViT, DeiT and I-JEPA normalise them, BEiT and Data2Vec do not."""

    example = "google/vit-base-patch16-224"
    classes: ClassVar = {
        "vit": ("ViTModel", NO_POOLER),
        "deit": ("DeiTModel", NO_POOLER),
        "beit": ("BeitModel", NO_POOLER),
        "data2vec-vision": ("Data2VecVisionModel", NO_POOLER),
        "ijepa": ("IJepaModel", NO_POOLER),
    }
